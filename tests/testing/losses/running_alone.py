"""Declares the first values and no update."""

import torch.nn.functional as F

from dpobench import Pairs, PerPair, loss


def init() -> dict[str, float]:
    """Nothing seen."""
    return {"delta": 0.0}


@loss(source="none", beta_grid=(0.05, 0.1), running=(init,))
def running_alone(pairs: Pairs, *, beta: float = 0.1) -> PerPair:
    """Faulty."""
    return -F.logsigmoid(beta * pairs.chosen.logratio - pairs.statistics["delta"])
