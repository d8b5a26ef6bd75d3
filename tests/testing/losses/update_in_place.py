"""Writes into the statistics that it is given."""

from collections.abc import MutableMapping

import torch.nn.functional as F

from dpobench import Pairs, PerPair, loss


def init() -> dict[str, float]:
    """Nothing seen."""
    return {"delta": 0.0}


def update(pairs: Pairs, statistics: MutableMapping[str, float]) -> MutableMapping[str, float]:
    """Faulty."""
    statistics["delta"] += float(pairs.margin.mean())
    return statistics


@loss(source="none", beta_grid=(0.05, 0.1), running=(init, update))
def update_in_place(pairs: Pairs, *, beta: float = 0.1) -> PerPair:
    """Faulty."""
    return -F.logsigmoid(beta * pairs.chosen.logratio - pairs.statistics["delta"])
