"""Does not say where it comes from."""

import torch.nn.functional as F

from dpobench import Pairs, PerPair, loss


@loss(source=" ", beta_grid=(0.05, 0.1))
def no_source(pairs: Pairs, *, beta: float = 0.1) -> PerPair:
    """Faulty."""
    return -F.logsigmoid(beta * pairs.margin)
