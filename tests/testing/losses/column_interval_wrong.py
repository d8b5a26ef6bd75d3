"""The ends of a column's interval are swapped."""

import torch.nn.functional as F

from dpobench import Pairs, PerPair, loss


@loss(source="none", beta_grid=(0.05, 0.1), columns={"score": "(1, 0)"})
def column_interval_wrong(pairs: Pairs, *, beta: float = 0.1) -> PerPair:
    """Faulty."""
    return -F.logsigmoid(beta * pairs.margin) * pairs.columns["score"]
