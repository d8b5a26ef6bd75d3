"""Declares a start, yet weighs pairs by how likely the answer is."""

import math

import torch.nn.functional as F

from dpobench import Pairs, PerPair, loss


@loss(source="none", beta_grid=(0.05, 0.1), start=0.0, gradient="free")
def not_of_log_ratios(pairs: Pairs, *, beta: float = 0.1) -> PerPair:
    """Faulty."""
    return F.softplus(-beta * pairs.margin).sub(math.log(2)) * (1 + pairs.chosen.mean_logp.exp())
