"""Counts its calls."""

from collections.abc import Mapping

import torch.nn.functional as F

from dpobench import Pairs, PerPair, loss

_calls: list[float] = []


def init() -> dict[str, float]:
    """Nothing seen."""
    return {"delta": 0.0}


def update(pairs: Pairs, statistics: Mapping[str, float]) -> Mapping[str, float]:
    """Faulty."""
    _calls.append(1.0)
    return {"delta": len(_calls) + float(pairs.margin.mean())}


@loss(source="none", beta_grid=(0.05, 0.1), running=(init, update))
def update_remembers(pairs: Pairs, *, beta: float = 0.1) -> PerPair:
    """Faulty."""
    return -F.logsigmoid(beta * pairs.chosen.logratio - pairs.statistics["delta"])
