"""Reseeds the global random numbers."""

import torch
import torch.nn.functional as F

from dpobench import Pairs, PerPair, loss


@loss(source="none", beta_grid=(0.05, 0.1))
def reseeds(pairs: Pairs, *, beta: float = 0.1) -> PerPair:
    """Faulty."""
    torch.manual_seed(0)
    return -F.logsigmoid(beta * pairs.margin) * (1 + torch.rand(1))
