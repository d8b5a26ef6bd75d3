"""Two losses whose value for a pair depends on the other pairs: what no micro-batch may see alone."""

import math

import torch
import torch.nn.functional as F

from dpobench import Pairs, PerPair, loss


@loss(source="Wu et al. 2024, arXiv:2407.07880, eq. 8", beta_grid=(0.1,), couples_batch=True, start=math.log(2))
def distributional(pairs: Pairs, *, beta: float = 0.1, sharpness: float = 0.5) -> PerPair:
    """Soft minimum over the batch of the logistic losses."""
    each = -F.logsigmoid(beta * pairs.margin)
    whole = -sharpness * (torch.logsumexp(-each / sharpness, 0) - math.log(len(pairs)))
    return whole.expand(len(pairs))


@loss(source="Melnyk et al. 2024, arXiv:2406.05882, algorithm 1", beta_grid=(0.1,), couples_batch=True)
def transport(pairs: Pairs, *, beta: float = 0.1) -> PerPair:
    """Logistic loss on the differences of sorted log-ratios, chosen against rejected."""
    chosen, rejected = (side.logratio.sort().values for side in (pairs.chosen, pairs.rejected))
    return -F.logsigmoid(beta * (chosen - rejected))
