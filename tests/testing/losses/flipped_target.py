"""A target of the wrong sign."""

from dpobench import Pairs, PerPair, loss


@loss(source="none", beta_grid=(0.05, 0.1), gradient="target")
def flipped_target(pairs: Pairs, *, beta: float = 0.1) -> PerPair:
    """Faulty."""
    return (pairs.margin + 1 / (2 * beta)).square()
