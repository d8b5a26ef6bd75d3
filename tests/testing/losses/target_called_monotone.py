"""Has a target, declares none."""

from dpobench import Pairs, PerPair, loss


@loss(source="none", beta_grid=(0.05, 0.1))
def target_called_monotone(pairs: Pairs, *, beta: float = 0.1) -> PerPair:
    """Faulty."""
    return (pairs.margin - 1 / (2 * beta)).square()
