"""Zero gradient where training starts."""

from dpobench import Pairs, PerPair, loss


@loss(source="none", beta_grid=(0.05, 0.1), gradient="free")
def flat_at_start(pairs: Pairs, *, beta: float = 0.1) -> PerPair:
    """Faulty."""
    return (beta * pairs.margin).square()
