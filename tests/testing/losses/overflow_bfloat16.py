"""Finite in float32, the logarithm of zero in bfloat16."""

import torch
import torch.nn.functional as F

from dpobench import Pairs, PerPair, loss


@loss(source="none", beta_grid=(0.05, 0.1))
def overflow_bfloat16(pairs: Pairs, *, beta: float = 0.1) -> PerPair:
    """Faulty."""
    nearly_zero = torch.ones_like(pairs.margin) + 1e-3 - 1
    return 1e-3 * nearly_zero.log() - F.logsigmoid(beta * pairs.margin)
