"""Declares noise and draws its own."""

import torch
import torch.nn.functional as F

from dpobench import Pairs, PerPair, loss


@loss(source="none", beta_grid=(0.05, 0.1), needs=("noise",))
def noise_ignored_global_rng(pairs: Pairs, *, beta: float = 0.1) -> PerPair:
    """Faulty."""
    draw = torch.rand_like(pairs.margin) * pairs.chosen.mean("noise")
    return -F.logsigmoid(beta * pairs.margin + draw)
