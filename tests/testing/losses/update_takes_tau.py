"""Its update takes a hyper-parameter that the loss does not have."""

from collections.abc import Mapping

import torch.nn.functional as F

from dpobench import Pairs, PerPair, loss


def init() -> dict[str, float]:
    """Nothing seen."""
    return {"delta": 0.0}


def update(pairs: Pairs, statistics: Mapping[str, float], *, tau: float) -> Mapping[str, float]:
    """Faulty."""
    return {"delta": tau * float(pairs.margin.mean())}


@loss(source="none", beta_grid=(0.05, 0.1), running=(init, update))
def update_takes_tau(pairs: Pairs, *, beta: float = 0.1) -> PerPair:
    """Faulty."""
    return -F.logsigmoid(beta * pairs.chosen.logratio - pairs.statistics["delta"])
