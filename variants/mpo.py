"""Mixed Preference Optimization: DPO, binary classifier optimization and likelihood in one sum."""

import torch.nn.functional as F
from torch import Tensor

from dpobench import Objective, Pairs, loss


def init() -> dict[str, float]:
    """No batch yet: no shift."""
    return {"delta": 0.0, "count": 0.0}


def update(pairs: Pairs, statistics: dict[str, float], *, beta: float) -> dict[str, Tensor | float]:
    """Mean of all batches' mean rewards, this one included, every batch counting the same."""
    count = statistics["count"] + 1
    reward = beta * (pairs.chosen.logratio + pairs.rejected.logratio).mean() / 2
    return {"delta": statistics["delta"] + (reward - statistics["delta"]) / count, "count": count}


@loss(
    source="Wang et al. 2024, arXiv:2411.10442, with the likelihood averaged over tokens as implemented by TRL",
    beta_grid=(0.01, 0.05, 0.1, 0.3, 0.5),
    bounds={"preference": "[0, inf)", "quality": "[0, inf)", "generation": "[0, inf)"},
    running=(init, update),
)
def mpo(
    pairs: Pairs, *, beta: float = 0.1, preference: float = 0.8, quality: float = 0.2, generation: float = 1.0
) -> Objective:
    r"""Weighted sum: $-w_p\log\sigma(\beta\Delta) - w_q[\log\sigma(\beta a - \delta) + \log\sigma(\delta - \beta b)]$, and likelihood.

    The likelihood term is $-w_g \sum_i p_{w,i} / \sum_i n_{w,i}$ over the global batch; $\delta$ is the mean reward of
    the batches so far, as in `bco_pair`. TRL's list of losses takes the same weights and no $\delta$.

    Args:
        pairs: B pairs; log-ratios $a$ of the chosen and $b$ of the rejected and $\Delta = a - b$, shape [B], in nats; statistic
            "delta" is $\delta$.
        beta: regularisation strength, in both terms.
        preference: $w_p$, weight of DPO.
        quality: $w_q$, weight of the classifier that tells good answers from bad.
        generation: $w_g$, weight of the likelihood, nats a token, a mean over all tokens of the global batch.

    Returns: one loss per pair, shape [B], and the likelihood as a ratio.

    Example:
        >>> from dpobench.testing import example_pairs
        >>> pairs = example_pairs([2.0], [-1.0], statistics={"delta": 0.1})
        >>> mpo(pairs).each()  # 0.8 log(1 + e^-0.3) + 0.2 (log(1 + e^-0.1) + log(1 + e^-0.2)) + 1
        tensor([1.6920])
    """
    delta = pairs.statistics["delta"]
    good, bad = beta * pairs.chosen.logratio - delta, beta * pairs.rejected.logratio - delta
    classified = -F.logsigmoid(good) - F.logsigmoid(-bad)
    losses = -preference * F.logsigmoid(beta * pairs.margin) + quality * classified
    return Objective(losses, (pairs.chosen.nll(generation),))
