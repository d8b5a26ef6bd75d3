"""Treats the first pair of a batch differently."""

import torch
import torch.nn.functional as F

from dpobench import Pairs, PerPair, loss


@loss(source="none", beta_grid=(0.05, 0.1))
def first_pair_only(pairs: Pairs, *, beta: float = 0.1) -> PerPair:
    """Faulty."""
    weight = torch.ones_like(pairs.margin)
    weight[0] = 2.0
    return -F.logsigmoid(beta * pairs.margin) * weight
