"""Chi-squared preference optimization: DPO with a link that resists overoptimization."""

import math

import torch.nn.functional as F

from dpobench import Pairs, PerPair, Side, loss


@loss(
    source="Huang et al. 2024, arXiv:2407.13399",
    beta_grid=(0.005, 0.025, 0.05, 0.15, 0.25),
    bounds={"reward_bound": "(0, inf)"},
    start=math.log(2),
)
def chipo(pairs: Pairs, *, beta: float = 0.05, reward_bound: float = 10.0) -> PerPair:
    r"""DPO with the link $\varphi(a) = e^a + a$: $-\log\sigma(\mathrm{clip}_{\pm 2R}(\beta(\varphi(a) - \varphi(b))))$.

    For small log-ratios it is `dpo` at twice the beta. Two clamps act: past $2R$ on either side the gradient of a pair is exactly 0,
    so one ranked that wrongly cannot recover, and log-ratios above 20 nats enter the exponential as 20. Clipped is the
    difference of the two rewards; there is code that clips each reward instead.

    Args:
        pairs: B pairs; $a$ is the log-ratio of the chosen answer, $b$ of the rejected one, shape [B], in nats.
        beta: regularisation strength.
        reward_bound: $R$, bound of the reward; the logits are held within $\pm 2R$.

    Returns: one loss per pair, shape [B]; log 2 wherever the policy still equals the reference.

    Example:
        >>> from dpobench.testing import example_pairs
        >>> pairs = example_pairs([1.0], [0.0])
        >>> chipo(pairs, beta=0.1)  # (e + 1) - (1 + 0) = e: log(1 + e^-0.2718)
        tensor([0.5664])
    """
    logits = beta * (pairs.margin + (_ratio(pairs.chosen) - _ratio(pairs.rejected)))
    return -F.logsigmoid(logits.clamp(-2 * reward_bound, 2 * reward_bound))


def _ratio(side: Side) -> PerPair:
    return side.logratio.clamp(max=20.0).exp()
