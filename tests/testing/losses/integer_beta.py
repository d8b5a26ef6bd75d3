"""The default of beta is an integer."""

import torch.nn.functional as F

from dpobench import Pairs, PerPair, loss


@loss(source="none", beta_grid=(1, 2))
def integer_beta(pairs: Pairs, *, beta: int = 1) -> PerPair:
    """Faulty."""
    return -F.logsigmoid(beta * pairs.margin)
