"""Direct Preference Optimization."""

import math

import torch.nn.functional as F

from dpobench import Pairs, PerPair, loss


@loss(
    source="Rafailov et al. 2023, arXiv:2305.18290, eq. 7",
    beta_grid=(0.01, 0.05, 0.1, 0.3, 0.5),
    start=math.log(2),
    states_probability=True,
)
def dpo(pairs: Pairs, *, beta: float = 0.1) -> PerPair:
    r"""Logistic loss on the margin: $-\log\sigma(\beta\,\Delta)$.

    Args:
        pairs: B pairs; `pairs.margin` is $\Delta$, shape [B], in nats.
        beta: regularisation strength; the smaller, the further the policy may drift.

    Returns: one loss per pair, shape [B]; log 2 wherever the policy still equals the reference.

    Example:
        >>> from dpobench.testing import example_pairs
        >>> pairs = example_pairs([2.0], [-1.0])
        >>> dpo(pairs, beta=0.1)  # margin 3: log(1 + e^-0.3)
        tensor([0.5544])
    """
    return -F.logsigmoid(beta * pairs.margin)
