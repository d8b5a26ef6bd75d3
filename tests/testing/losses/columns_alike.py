"""Divides by the gap of two scores, which may be alike."""

import torch.nn.functional as F

from dpobench import Pairs, PerPair, loss


@loss(source="none", beta_grid=(0.05, 0.1), columns={"high": "[0, 1]", "low": "[0, 1]"})
def columns_alike(pairs: Pairs, *, beta: float = 0.1) -> PerPair:
    """Faulty."""
    gap = pairs.columns["high"] - pairs.columns["low"]
    return -F.logsigmoid(beta * pairs.margin / gap.abs())
