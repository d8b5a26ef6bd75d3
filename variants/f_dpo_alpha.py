"""DPO under an alpha-divergence, between the reverse KL divergence (0) and the forward one (1)."""

import math

import torch.nn.functional as F

from dpobench import Pairs, PerPair, loss

# Squared and summed over a model's weights, gradients of this exponential stay within float32.
LIMIT = 30.0


@loss(
    source="Wang et al. 2023, arXiv:2309.16240, alpha-divergence",
    beta_grid=(0.01, 0.1),
    grids={"alpha": (0.1, 0.3, 0.5, 0.7, 0.9)},
    bounds={"alpha": "(0, 1]"},
    start=math.log(2),
)
def f_dpo_alpha(pairs: Pairs, *, beta: float = 0.1, alpha: float = 0.5) -> PerPair:
    r"""Logistic loss on powers of probability ratios: $-\log\sigma(\frac\beta\alpha(e^{-\alpha b} - e^{-\alpha a}))$.

    This is the exponent $-\alpha$ of the paper, its authors' code and older TRL; TRL from 0.29 on has $\alpha - 1$, so that its alpha
    is 1 minus this one. Where $-\alpha$ times a log-ratio passes 30 the exponential is continued along its tangent, where
    others overflow, or clamp it and lose the pair's gradient.

    Args:
        pairs: B pairs; $a$ is the log-ratio of the chosen answer, $b$ of the rejected one, shape [B], in nats.
        beta: regularisation strength.
        alpha: $\alpha$; 1 is `f_dpo_forward_kl`, towards 0 it becomes `dpo`.

    Returns: one loss per pair, shape [B]; log 2 wherever the policy still equals the reference.

    Example:
        >>> from dpobench.testing import example_pairs
        >>> pairs = example_pairs([0.0], [-2.0])
        >>> f_dpo_alpha(pairs, alpha=0.5)  # 0.1 / 0.5 x (e - 1) = 0.3437: log(1 + e^-0.3437)
        tensor([0.5360])
    """
    chosen, rejected = (_exponential(-alpha * side.logratio) for side in (pairs.chosen, pairs.rejected))
    return -F.logsigmoid(beta / alpha * (rejected - chosen))


def _exponential(exponent: PerPair) -> PerPair:
    # Minus 1, which cancels in the difference: digits of a small exponent survive.
    near = exponent.clamp(max=LIMIT)
    return near.expm1() + near.exp() * (exponent - near)
