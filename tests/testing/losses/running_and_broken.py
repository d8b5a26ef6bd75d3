"""Keeps statistics well, and fails itself."""

from collections.abc import Mapping

import torch.nn.functional as F

from dpobench import Pairs, PerPair, loss


def init() -> dict[str, float]:
    """Nothing seen."""
    return {"delta": 0.0}


def update(pairs: Pairs, statistics: Mapping[str, float]) -> Mapping[str, float]:
    """Sum of the batches' margins."""
    return {"delta": statistics["delta"] + float(pairs.margin.mean())}


@loss(source="none", beta_grid=(0.05, 0.1), running=(init, update))
def running_and_broken(pairs: Pairs, *, beta: float = 0.1) -> PerPair:
    """Faulty."""
    return -F.logsigmoid(beta * pairs.margin - pairs.statistics["gamma"])
