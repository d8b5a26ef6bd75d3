"""Length-normalised DPO."""

import math

import torch.nn.functional as F

from dpobench import Pairs, PerPair, loss


@loss(
    source="Lambert et al. 2024, arXiv:2411.15124, eq. 6",
    beta_grid=(2.0, 5.0, 10.0, 15.0),
    unit="nat per token",
    start=math.log(2),
)
def dpo_norm(pairs: Pairs, *, beta: float = 5.0) -> PerPair:
    r"""Logistic loss on the difference of per-token log-ratios: $-\log\sigma(\beta\bar\Delta)$.

    At n tokens an answer, $\beta$ here acts like $\beta / n$ in `dpo`: 5 at 200 tokens is 0.025 there.

    Args:
        pairs: B pairs; `pairs.mean_margin` is $\bar\Delta$, shape [B], in nats per token.
        beta: regularisation strength, per nat per token.

    Returns: one loss per pair, shape [B]; log 2 wherever the policy still equals the reference.

    Example:
        >>> from dpobench.testing import example_pairs
        >>> pairs = example_pairs([2.0], [-1.0], tokens=(2, 1))
        >>> dpo_norm(pairs, beta=0.1)  # 1 - (-1) = 2 nats a token: log(1 + e^-0.2)
        tensor([0.5981])
    """
    return -F.logsigmoid(beta * pairs.mean_margin)
