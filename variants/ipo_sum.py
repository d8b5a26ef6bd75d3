"""Identity Preference Optimization as printed: on summed log-ratios."""

from dpobench import Pairs, PerPair, loss


@loss(
    source="Azar et al. 2023, arXiv:2310.12036, eq. 17",
    beta_grid=(0.005, 0.01, 0.05, 0.1, 0.5),
    unit="target nat",
    gradient="target",
    start=lambda beta: 1 / (4 * beta**2),
)
def ipo_sum(pairs: Pairs, *, beta: float = 0.01) -> PerPair:
    r"""Squared distance of the margin from a target: $(\Delta - \frac{1}{2\tau})^2$.

    The gradient at the start is $1/\tau$: with a small tau it is clipped at every step.

    Args:
        pairs: B pairs; `pairs.margin` is $\Delta$, shape [B], in nats.
        beta: the paper's tau; the target margin is half its inverse, in nats.

    Returns: one loss per pair, shape [B]; $1 / (4\tau^2)$ wherever the policy still equals the reference.

    Example:
        >>> from dpobench.testing import example_pairs
        >>> pairs = example_pairs([2.0], [-1.0])
        >>> ipo_sum(pairs, beta=0.1)  # margin 3, target 5: (3 - 5)^2
        tensor([4.])
    """
    return (pairs.margin - 1 / (2 * beta)).square()
