"""Names no statistic at the beginning."""

from collections.abc import Mapping

import torch.nn.functional as F

from dpobench import Pairs, PerPair, loss


def init() -> dict[str, float]:
    """Nothing seen."""
    return {}


def update(pairs: Pairs, statistics: Mapping[str, float]) -> Mapping[str, float]:
    """Faulty."""
    return {}


@loss(source="none", beta_grid=(0.05, 0.1), running=(init, update))
def init_empty(pairs: Pairs, *, beta: float = 0.1) -> PerPair:
    """Faulty."""
    return -F.logsigmoid(beta * pairs.margin)
