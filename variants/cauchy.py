"""DPO with a Cauchy link: a preference model with heavy tails."""

import math

import torch

from dpobench import Pairs, PerPair, loss


@loss(
    source="as implemented by the authors of MallowsPO (Chen et al. 2024, arXiv:2405.14953)",
    beta_grid=(0.01, 0.05, 0.1, 0.3, 0.5),
    start=math.log(2),
)
def cauchy(pairs: Pairs, *, beta: float = 0.1) -> PerPair:
    r"""Negative log of the Cauchy distribution function: $-\log(\frac12 + \frac1\pi\arctan(\beta\Delta))$.

    A pair ranked very wrongly costs only the logarithm of its margin, and its gradient fades. The probability is taken as the angle
    of the point $(-\beta\Delta, 1)$ over $\pi$, which keeps its digits where the sum above cancels.

    Args:
        pairs: B pairs; `pairs.margin` is $\Delta$, shape [B], in nats.
        beta: regularisation strength.

    Returns: one loss per pair, shape [B]; log 2 wherever the policy still equals the reference.

    Example:
        >>> from dpobench.testing import example_pairs
        >>> pairs = example_pairs([1.0], [0.0])
        >>> cauchy(pairs, beta=1.0)  # -log(1/2 + 1/4)
        tensor([0.2877])
    """
    logits = beta * pairs.margin
    return -torch.log(torch.atan2(torch.ones_like(logits), -logits) / math.pi)
