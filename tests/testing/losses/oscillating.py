"""Turns again and again."""

import torch
import torch.nn.functional as F

from dpobench import Pairs, PerPair, loss


@loss(source="none", beta_grid=(0.05, 0.1), gradient="target")
def oscillating(pairs: Pairs, *, beta: float = 0.1) -> PerPair:
    """Faulty."""
    return -F.logsigmoid(beta * pairs.margin) + torch.cos(torch.relu(beta * pairs.margin))
