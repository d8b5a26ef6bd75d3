"""Overwrites the reference."""

import torch.nn.functional as F

from dpobench import Pairs, PerPair, loss


@loss(source="none", beta_grid=(0.05, 0.1))
def in_place_reference(pairs: Pairs, *, beta: float = 0.1) -> PerPair:
    """Faulty."""
    pairs.chosen.reference.mul_(beta)
    return -F.logsigmoid(beta * pairs.margin)
