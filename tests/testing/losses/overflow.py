"""Written with exp and log: infinite at large margins."""

import torch

from dpobench import Pairs, PerPair, loss


@loss(source="none", beta_grid=(0.05, 0.1))
def overflow(pairs: Pairs, *, beta: float = 0.1) -> PerPair:
    """Faulty."""
    return torch.log(1 + torch.exp(-beta * pairs.margin))
