"""Counts mistakes: the gradient is zero everywhere."""

from dpobench import Pairs, PerPair, loss


@loss(source="none", beta_grid=(0.05, 0.1))
def step_loss(pairs: Pairs, *, beta: float = 0.1) -> PerPair:
    """Faulty."""
    return (pairs.margin < 0).to(pairs.margin.dtype) + 0 * beta * pairs.margin
