"""Overwrites what the gradient needs."""

from dpobench import Pairs, PerPair, loss


@loss(source="none", beta_grid=(0.05, 0.1))
def spoils_backward(pairs: Pairs, *, beta: float = 0.1) -> PerPair:
    """Faulty."""
    right = (beta * pairs.margin).sigmoid()
    found = -right.log()
    right.mul_(0.5)
    return found
