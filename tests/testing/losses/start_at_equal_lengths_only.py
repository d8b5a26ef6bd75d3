"""The declared start holds where both answers are equally long."""

import math

import torch.nn.functional as F

from dpobench import Pairs, PerPair, loss


@loss(source="none", beta_grid=(0.05, 0.1), start=math.log(2))
def start_at_equal_lengths_only(pairs: Pairs, *, beta: float = 0.1) -> PerPair:
    """Faulty."""
    return -F.logsigmoid(beta * (pairs.margin + 0.1 * (pairs.chosen.length - pairs.rejected.length)))
