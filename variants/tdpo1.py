"""Token-level DPO, first form: the margin corrected by how far the policy drifted along each answer."""

import math

import torch.nn.functional as F

from dpobench import Pairs, PerPair, loss


@loss(
    source="Zeng et al. 2024, arXiv:2404.11999, as implemented by the authors",
    beta_grid=(0.01, 0.05, 0.1, 0.3, 0.5),
    needs=("reference_kl",),
    gradient="free",
    start=math.log(2),
)
def tdpo1(pairs: Pairs, *, beta: float = 0.1) -> PerPair:
    r"""Logistic loss: $-\log\sigma(\beta\,[\Delta - (S_l - S_w)])$, $S = \sum_t \mathrm{KL}(\pi_{ref} \| \pi)$ at the answer's tokens.

    Both divergences are differentiated, so that the chosen answer is rewarded for drift. In the log-probabilities of the tokens
    alone the loss is monotone; through the divergences, which depend on every other token too, it promises no sign.
    `tdpo2` holds the chosen answer's divergence constant.

    Args:
        pairs: B pairs; `pairs.margin` is $\Delta$, shape [B], in nats; extra "reference_kl", shape [B, T], in nats.
        beta: regularisation strength.

    Returns: one loss per pair, shape [B]; log 2 wherever the policy still equals the reference.

    Example:
        >>> from dpobench.testing import example_pairs
        >>> pairs = example_pairs([2.0], [-1.0], tokens=(1, 2), needs={"reference_kl": 0.5})
        >>> tdpo1(pairs, beta=0.1)  # 3 - (1 - 0.5) = 2.5: log(1 + e^-0.25)
        tensor([0.5759])
    """
    drift = pairs.rejected.total("reference_kl") - pairs.chosen.total("reference_kl")
    return -F.logsigmoid(beta * (pairs.margin - drift))
