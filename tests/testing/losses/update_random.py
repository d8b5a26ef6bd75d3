"""Drops a part of the batch at random."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F

from dpobench import Pairs, PerPair, loss


def init() -> dict[str, float]:
    """Nothing seen."""
    return {"delta": 0.0}


def update(pairs: Pairs, statistics: Mapping[str, float]) -> Mapping[str, float]:
    """Faulty."""
    kept = torch.rand_like(pairs.margin) < 0.5
    return {"delta": float((kept * pairs.margin).mean())}


@loss(source="none", beta_grid=(0.05, 0.1), running=(init, update))
def update_random(pairs: Pairs, *, beta: float = 0.1) -> PerPair:
    """Faulty."""
    return -F.logsigmoid(beta * pairs.chosen.logratio - pairs.statistics["delta"])
