"""Anchored Preference Optimization, zero: chosen answers up, rejected answers down, each against the reference."""

from dpobench import Pairs, PerPair, loss


@loss(source="D'Oosterlinck et al. 2024, arXiv:2408.06266, eq. 7, up to a constant", beta_grid=(0.05, 0.1), start=1.0)
def apo_zero(pairs: Pairs, *, beta: float = 0.1) -> PerPair:
    r"""Chance of judging each answer wrongly: $\sigma(-\beta a) + \sigma(\beta b)$, a and b the log-ratios.

    Meant for chosen answers that are better than what the policy writes; for worse ones there is `apo_down`. The gradient fades where
    an answer is judged very wrongly as well as where it is judged well.

    Args:
        pairs: B pairs; log-ratios a of the chosen and b of the rejected, shape [B], in nats.
        beta: per nat; how fast an answer's value saturates as it leaves the reference.

    Returns: one loss per pair, shape [B]; 1 wherever the policy still equals the reference.

    Example:
        >>> from dpobench.testing import example_pairs
        >>> pairs = example_pairs([2.0], [-1.0])
        >>> apo_zero(pairs, beta=0.1)  # sigmoid(-0.2) + sigmoid(-0.1)
        tensor([0.9252])
    """
    return (-beta * pairs.chosen.logratio).sigmoid() + (beta * pairs.rejected.logratio).sigmoid()
