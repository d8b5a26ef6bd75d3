"""Binary Classifier Optimization on pairs without its reward shift."""

import math

import torch.nn.functional as F

from dpobench import Pairs, PerPair, loss


@loss(
    source="as implemented by TRL since 0.29 and Liger (`bco_pair`), and by the authors of arXiv:2402.05369 (`biasedNCA`)",
    beta_grid=(0.01, 0.1),
    start=2 * math.log(2),
)
def bco_pair_no_shift(pairs: Pairs, *, beta: float = 0.1) -> PerPair:
    r"""Logistic loss of either answer's reward against 0: $-\log\sigma(\beta a) - \log\sigma(-\beta b)$.

    The method's paper (arXiv:2404.04656) has a reward shift, which these implementations leave out; with it, this is `bco_pair`.

    Args:
        pairs: B pairs; log-ratios a of the chosen and b of the rejected, shape [B], in nats.
        beta: regularisation strength, per nat.

    Returns: one loss per pair, shape [B]; 2 log 2 wherever the policy still equals the reference.

    Example:
        >>> from dpobench.testing import example_pairs
        >>> pairs = example_pairs([2.0], [-1.0])
        >>> bco_pair_no_shift(pairs, beta=0.1)  # log(1 + e^-0.2) + log(1 + e^-0.1)
        tensor([1.2425])
    """
    return -F.logsigmoid(beta * pairs.chosen.logratio) - F.logsigmoid(-beta * pairs.rejected.logratio)
