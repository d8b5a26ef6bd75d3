"""Anchored Preference Optimization, down: both answers down, the rejected one more."""

from dpobench import Pairs, PerPair, loss


@loss(
    source="D'Oosterlinck et al. 2024, arXiv:2408.06266, eq. 8, up to a constant",
    beta_grid=(0.05, 0.1),
    gradient="free",
    start=1.0,
)
def apo_down(pairs: Pairs, *, beta: float = 0.1) -> PerPair:
    r"""Lowers the chosen answer and widens the margin: $\sigma(\beta a) + \sigma(-\beta\Delta)$.

    Meant for chosen answers that are worse than what the policy writes. At policy = reference the two terms cancel on the chosen
    answer; once the margin has grown, the chosen answer is pushed down, by intent.

    Args:
        pairs: B pairs; log-ratio a of the chosen and `pairs.margin` $\Delta$, shape [B], in nats.
        beta: per nat; how fast either term saturates.

    Returns: one loss per pair, shape [B]; 1 wherever the policy still equals the reference.

    Example:
        >>> from dpobench.testing import example_pairs
        >>> pairs = example_pairs([2.0], [-1.0])
        >>> apo_down(pairs, beta=0.1)  # sigmoid(0.2) + sigmoid(-0.3)
        tensor([0.9754])
    """
    return (beta * pairs.chosen.logratio).sigmoid() + (-beta * pairs.margin).sigmoid()
