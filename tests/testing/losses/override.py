"""A straight-through trick: the gradient is not the slope of the value."""

from dpobench import Pairs, PerPair, loss


@loss(source="none", beta_grid=(0.05, 0.1))
def override(pairs: Pairs, *, beta: float = 0.1) -> PerPair:
    """Faulty."""
    logits = beta * pairs.margin
    return logits.detach().square() - logits + logits.detach()
