"""Noise Contrastive Alignment with two answers a prompt."""

import math

import torch.nn.functional as F

from dpobench import Pairs, PerPair, loss


@loss(
    source="Chen et al. 2024, arXiv:2402.05369, with K = 2 as implemented by the authors, TRL and Liger",
    beta_grid=(0.01, 0.1),
    gradient="target",
    start=2 * math.log(2),
)
def nca(pairs: Pairs, *, beta: float = 0.01) -> PerPair:
    r"""Absolute likelihoods instead of margins: $-\log\sigma(\beta a) - \frac12\log\sigma(-\beta a) - \frac12\log\sigma(-\beta b)$.

    The chosen answer is pushed up to a log-ratio of $\log 2 / \beta$ and down beyond it; the rejected answer is pushed down
    without end. The InfoNCA of the same paper is, with two answers, DPO; its "biased" NCA is `bco_pair_no_shift`.

    Args:
        pairs: B pairs; log-ratios a of the chosen and b of the rejected, shape [B], in nats.
        beta: per nat; the smaller, the farther the chosen answer may rise.

    Returns: one loss per pair, shape [B]; 2 log 2 wherever the policy still equals the reference.

    Example:
        >>> from dpobench.testing import example_pairs
        >>> pairs = example_pairs([2.0], [-1.0])
        >>> nca(pairs, beta=0.1)  # log(1 + e^-0.2) + log(1 + e^0.2) / 2 + log(1 + e^-0.1) / 2
        tensor([1.3194])
    """
    chosen, rejected = beta * pairs.chosen.logratio, beta * pairs.rejected.logratio
    return -F.logsigmoid(chosen) - (F.logsigmoid(-chosen) + F.logsigmoid(-rejected)) / 2
