"""Epsilon-DPO: each pair's beta is a step smaller or larger, as the pair's margin answers to such a step."""

import math

import torch.nn.functional as F

from dpobench import Pairs, PerPair, loss


@loss(
    source="Lee et al. 2025, arXiv:2502.13177, as implemented by the authors",
    beta_grid=(0.01, 0.05, 0.1),
    bounds={"epsilon": "[0, 1)"},
    needs=("extrapolated", "interpolated"),
    start=math.log(2),
)
def eps_dpo(pairs: Pairs, *, beta: float = 0.01, epsilon: float = 0.01) -> PerPair:
    r"""DPO with a beta for every pair: $-\log\sigma(\frac{\beta}{1 + \epsilon s}\Delta)$.

    A policy with logits $(1 + \epsilon)$ policy $- \epsilon$ reference stands for a smaller beta, one with $(1 - \epsilon)$ policy
    $+ \epsilon$ reference for a larger. $s = 1$ if the margin of log-probabilities rises from the latter over the policy itself to
    the former, $-1$ if it falls all the way, else 0. The label smoothing of the authors' code has no effect; there is none here.

    Args:
        pairs: B pairs; `pairs.margin` is $\Delta$, shape [B], in nats; `extrapolated` and `interpolated` log-probabilities.
        beta: regularisation strength.
        epsilon: relative size of the step; 0 is DPO.

    Returns: one loss per pair, shape [B]; log 2 wherever the policy still equals the reference.

    Example:
        >>> from dpobench.testing import example_pairs
        >>> pairs = example_pairs([2.0], [-1.0], tokens=(1, 2), needs={"extrapolated": -7.0, "interpolated": -5.0})
        >>> eps_dpo(pairs, beta=0.15, epsilon=0.5)  # margins 7 > 6 > 5 rise, so beta is 0.15 / 1.5: log(1 + e^-0.3)
        tensor([0.5544])
    """
    now = pairs.chosen.logp - pairs.rejected.logp
    away, towards = (pairs.chosen.total(n) - pairs.rejected.total(n) for n in ("extrapolated", "interpolated"))
    rises, falls = (away > now) & (now > towards), (away < now) & (now < towards)
    return -F.logsigmoid(beta / (1 + epsilon * (rises.to(now.dtype) - falls.to(now.dtype))) * pairs.margin)
