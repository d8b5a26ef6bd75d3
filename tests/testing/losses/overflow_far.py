"""Not a number only thousands of nats out."""

import torch

from dpobench import Pairs, PerPair, loss


@loss(source="none", beta_grid=(0.05, 0.1))
def overflow_far(pairs: Pairs, *, beta: float = 0.1) -> PerPair:
    """Faulty."""
    return torch.exp(-beta * pairs.margin).clamp(max=1e30).log1p() + 0 * torch.exp(pairs.margin.abs() / 50)
