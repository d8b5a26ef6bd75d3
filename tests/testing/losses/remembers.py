"""Counts its calls: not a pure function."""

import torch.nn.functional as F

from dpobench import Pairs, PerPair, loss

_calls: list[float] = []


@loss(source="none", beta_grid=(0.05, 0.1))
def remembers(pairs: Pairs, *, beta: float = 0.1) -> PerPair:
    """Faulty."""
    _calls.append(0.001)
    return -F.logsigmoid(beta * pairs.margin) + sum(_calls) * pairs.margin
