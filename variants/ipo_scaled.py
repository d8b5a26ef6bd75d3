"""Identity Preference Optimization on summed log-ratios, scaled so that the gradient does not grow as tau shrinks."""

from dpobench import Pairs, PerPair, loss


@loss(
    source="Azar et al. 2023, arXiv:2310.12036, eq. 17, times tau squared as implemented by the authors of MallowsPO",
    beta_grid=(0.005, 0.01, 0.05, 0.1, 0.5),
    unit="target nat",
    gradient="target",
    start=0.25,
)
def ipo_scaled(pairs: Pairs, *, beta: float = 0.01) -> PerPair:
    r"""Squared distance of the scaled margin from one half: $(\tau\Delta - \frac12)^2$.

    It is $\tau^2$ times `ipo_sum`: the same target and the same minimum, but a gradient of $\tau$ at the start instead of $1/\tau$.

    Args:
        pairs: B pairs; `pairs.margin` is $\Delta$, shape [B], in nats.
        beta: the paper's tau; the target margin is half its inverse, in nats.

    Returns: one loss per pair, shape [B]; 1/4 wherever the policy still equals the reference.

    Example:
        >>> from dpobench.testing import example_pairs
        >>> pairs = example_pairs([2.0], [-1.0])
        >>> ipo_scaled(pairs, beta=0.1)  # (0.1 x 3 - 0.5)^2
        tensor([0.0400])
    """
    return (beta * pairs.margin - 0.5).square()
