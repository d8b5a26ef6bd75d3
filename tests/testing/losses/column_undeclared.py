"""Reads a column under another name than the declared one."""

import torch.nn.functional as F

from dpobench import Pairs, PerPair, loss


@loss(source="none", beta_grid=(0.05, 0.1), columns={"score": "(0, 1)"})
def column_undeclared(pairs: Pairs, *, beta: float = 0.1) -> PerPair:
    """Faulty."""
    return -F.logsigmoid(beta * pairs.margin) * pairs.columns["score"] * pairs.columns["scores"]
