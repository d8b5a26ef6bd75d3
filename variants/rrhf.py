"""Rank responses to align: a hinge on mean log-probabilities, plus the likelihood of the chosen answer."""

from dpobench import Pairs, PerPair, loss


@loss(
    source="Yuan et al. 2023, arXiv:2304.05302, on pairs, with the likelihood averaged per answer",
    beta_grid=(0.1, 1.0, 10.0, 100.0),
    strength="weight",
    unit="weight",
    reference=False,
)
def rrhf(pairs: Pairs, *, weight: float = 1.0) -> PerPair:
    r"""Hinge and likelihood: $\lambda\max(0, \bar p_l - \bar p_w) - \bar p_w$.

    No margin is required: once the chosen answer is the likelier, only the likelihood has a gradient. The authors' code defaults to a
    weight of 100 and averages the likelihood over padding as well.

    Args:
        pairs: B pairs; $\bar p$ is `mean_logp` of each side, shape [B], in nats per token.
        weight: $\lambda$, of the hinge relative to the likelihood.

    Returns: one loss per pair, shape [B].

    Example:
        >>> from dpobench.testing import example_pairs
        >>> pairs = example_pairs([1.0], [2.0])
        >>> rrhf(pairs)  # log-probabilities -2 and -1: (-1 + 2) + 2
        tensor([3.])
    """
    return weight * (pairs.rejected.mean_logp - pairs.chosen.mean_logp).relu() - pairs.chosen.mean_logp
