"""Divides a column by its mean over the batch."""

import torch.nn.functional as F

from dpobench import Pairs, PerPair, loss


@loss(source="none", beta_grid=(0.05, 0.1), columns={"score": "(0, 1)"})
def column_normalised(pairs: Pairs, *, beta: float = 0.1) -> PerPair:
    """Faulty."""
    score = pairs.columns["score"]
    return -F.logsigmoid(beta * pairs.margin) * score / score.mean()
