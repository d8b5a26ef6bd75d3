"""A statistic is lost on the way."""

from collections.abc import Mapping

import torch.nn.functional as F

from dpobench import Pairs, PerPair, loss


def init() -> dict[str, float]:
    """Nothing seen."""
    return {"delta": 0.0, "count": 0.0}


def update(pairs: Pairs, statistics: Mapping[str, float]) -> Mapping[str, float]:
    """Faulty."""
    return {"delta": float(pairs.margin.mean())}


@loss(source="none", beta_grid=(0.05, 0.1), running=(init, update))
def update_forgets_a_name(pairs: Pairs, *, beta: float = 0.1) -> PerPair:
    """Faulty."""
    return -F.logsigmoid(beta * pairs.chosen.logratio - pairs.statistics["delta"] * pairs.statistics["count"])
