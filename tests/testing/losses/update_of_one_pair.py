"""The spread of a single pair is not a number."""

from collections.abc import Mapping

import torch.nn.functional as F

from dpobench import Pairs, PerPair, loss


def init() -> dict[str, float]:
    """Nothing seen."""
    return {"delta": 0.0}


def update(pairs: Pairs, statistics: Mapping[str, float]) -> Mapping[str, float]:
    """Faulty."""
    spread = (pairs.margin - pairs.margin.mean()).square().sum()
    return {"delta": float(spread / (len(pairs) - 1))}


@loss(source="none", beta_grid=(0.05, 0.1), running=(init, update))
def update_of_one_pair(pairs: Pairs, *, beta: float = 0.1) -> PerPair:
    """Faulty."""
    return -F.logsigmoid(beta * pairs.chosen.logratio - pairs.statistics["delta"])
