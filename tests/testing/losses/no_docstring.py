"""The function has no docstring."""

import torch.nn.functional as F

from dpobench import Pairs, PerPair, loss


@loss(source="none", beta_grid=(0.05, 0.1))
def no_docstring(pairs: Pairs, *, beta: float = 0.1) -> PerPair:
    return -F.logsigmoid(beta * pairs.margin)
