"""The declared start holds at the default beta only."""

from dpobench import Pairs, PerPair, loss


@loss(source="none", beta_grid=(0.05, 0.1), gradient="target", start=25.0)
def start_at_default_only(pairs: Pairs, *, beta: float = 0.1) -> PerPair:
    """Faulty."""
    return (pairs.margin - 1 / (2 * beta)).square()
