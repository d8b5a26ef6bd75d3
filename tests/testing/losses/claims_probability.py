"""States a probability that a hinge does not have."""

import torch

from dpobench import Pairs, PerPair, loss


@loss(source="none", beta_grid=(0.1, 0.5), start=1.0, states_probability=True)
def claims_probability(pairs: Pairs, *, beta: float = 0.1) -> PerPair:
    """Hinge on the margin."""
    return torch.relu(1 - beta * pairs.margin)
