"""A column's interval is no interval."""

import torch.nn.functional as F

from dpobench import Pairs, PerPair, loss


@loss(source="none", beta_grid=(0.05, 0.1), columns={"score": "positive"})
def column_interval_unreadable(pairs: Pairs, *, beta: float = 0.1) -> PerPair:
    """Faulty."""
    return -F.logsigmoid(beta * pairs.margin) * pairs.columns["score"]
