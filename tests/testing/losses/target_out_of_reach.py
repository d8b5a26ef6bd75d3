"""One point of the grid has its target 50,000 nats away."""

from dpobench import Pairs, PerPair, loss


@loss(source="none", beta_grid=(0.00001, 0.1), gradient="target")
def target_out_of_reach(pairs: Pairs, *, beta: float = 0.1) -> PerPair:
    """Faulty."""
    return (pairs.margin - 1 / (2 * beta)).square()
