"""Binary Classifier Optimization on pairs, with its running reward shift."""

import math

import torch.nn.functional as F
from torch import Tensor

from dpobench import Pairs, PerPair, loss


def init() -> dict[str, float]:
    """No batch yet: no shift."""
    return {"delta": 0.0, "count": 0.0}


def update(pairs: Pairs, statistics: dict[str, float], *, beta: float) -> dict[str, Tensor | float]:
    """Mean of all batches' mean rewards, every batch counting the same."""
    count = statistics["count"] + 1
    reward = beta * (pairs.chosen.logratio + pairs.rejected.logratio).mean() / 2
    return {"delta": statistics["delta"] + (reward - statistics["delta"]) / count, "count": count}


@loss(
    source="Jung et al. 2024, arXiv:2404.04656, on pairs as implemented by TRL 0.24 and ms-swift",
    beta_grid=(0.01, 0.1),
    running=(init, update),
    start=2 * math.log(2),
)
def bco_pair(pairs: Pairs, *, beta: float = 0.1) -> PerPair:
    r"""Logistic loss of either answer's reward against a common shift: $-\log\sigma(\beta a - \delta) - \log\sigma(\delta - \beta b)$.

    $\delta$ is the mean, over all batches so far, of a batch's mean reward $\beta(a + b) / 2$, this batch included; TRL's
    former trainer for unpaired data averaged over all rewards alike. `bco_pair_no_shift` goes by this name elsewhere.

    Args:
        pairs: B pairs; log-ratios a of the chosen and b of the rejected, shape [B], in nats; `pairs.statistics["delta"]`.
        beta: regularisation strength, per nat.

    Returns: one loss per pair, shape [B]; 2 log 2 wherever the policy still equals the reference and $\delta$ is 0.

    Example:
        >>> from dpobench.testing import example_pairs
        >>> pairs = example_pairs([2.0], [-1.0], statistics={"delta": 0.1})
        >>> bco_pair(pairs, beta=0.1)  # log(1 + e^-(0.2 - 0.1)) + log(1 + e^-(0.1 + 0.1))
        tensor([1.2425])
    """
    delta = pairs.statistics["delta"]
    return -F.logsigmoid(beta * pairs.chosen.logratio - delta) - F.logsigmoid(delta - beta * pairs.rejected.logratio)
