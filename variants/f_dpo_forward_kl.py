"""DPO under the forward KL divergence in the place of the reverse one."""

import math

import torch.nn.functional as F

from dpobench import Pairs, PerPair, loss

# Squared and summed over a model's weights, gradients of this exponential stay within float32.
LIMIT = 30.0


@loss(
    source="Wang et al. 2023, arXiv:2309.16240, forward KL",
    beta_grid=(0.01, 0.1),
    start=math.log(2),
)
def f_dpo_forward_kl(pairs: Pairs, *, beta: float = 0.1) -> PerPair:
    r"""Logistic loss on inverse probability ratios: $-\log\sigma(\beta(e^{-b} - e^{-a}))$.

    An answer that became unlikely weighs exponentially. Past 30 nats below the reference the exponential is continued along its
    tangent, where others overflow, or clamp it and lose the pair's gradient.

    Args:
        pairs: B pairs; $a$ is the log-ratio of the chosen answer, $b$ of the rejected one, shape [B], in nats.
        beta: regularisation strength.

    Returns: one loss per pair, shape [B]; log 2 wherever the policy still equals the reference.

    Example:
        >>> from dpobench.testing import example_pairs
        >>> pairs = example_pairs([0.0], [-1.0])
        >>> f_dpo_forward_kl(pairs, beta=0.1)  # 0.1 (e - 1) = 0.1718: log(1 + e^-0.1718)
        tensor([0.6109])
    """
    return -F.logsigmoid(beta * (_exponential(-pairs.rejected.logratio) - _exponential(-pairs.chosen.logratio)))


def _exponential(exponent: PerPair) -> PerPair:
    near = exponent.clamp(max=LIMIT)
    return near.exp() * (1 + exponent - near)
