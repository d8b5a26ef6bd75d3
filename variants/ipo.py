"""Identity Preference Optimization on per-token means: the form that published comparisons used."""

from dpobench import Pairs, PerPair, loss


@loss(
    source="Azar et al. 2023, arXiv:2310.12036, eq. 17, with log-ratios averaged over tokens as implemented by TRL",
    beta_grid=(0.1, 0.5, 1.0, 3.0, 10.0),
    unit="target nat per token",
    gradient="target",
    start=lambda beta: 1 / (4 * beta**2),
)
def ipo(pairs: Pairs, *, beta: float = 0.1) -> PerPair:
    r"""Squared distance of the mean margin from a target: $(\bar\Delta - \frac{1}{2\tau})^2$.

    The printed equation has sequence probabilities, that is sums (`ipo_sum`); most trainers average. At n tokens an answer,
    $\tau$ here acts like $\tau / n$ there. Published grids stop at 1, where the target is half a nat a token, a hundred nats for 200
    tokens; the grid goes on to targets as near as those of the logistic losses.

    Args:
        pairs: B pairs; `pairs.mean_margin` is $\bar\Delta$, shape [B], in nats per token.
        beta: the paper's tau; the target margin is half its inverse, in nats per token.

    Returns: one loss per pair, shape [B]; $1 / (4\tau^2)$ wherever the policy still equals the reference.

    Example:
        >>> from dpobench.testing import example_pairs
        >>> pairs = example_pairs([2.0], [-1.0], tokens=(2, 1))
        >>> ipo(pairs, beta=0.1)  # 2 nats a token, target 5: (2 - 5)^2
        tensor([9.])
    """
    return (pairs.mean_margin - 1 / (2 * beta)).square()
