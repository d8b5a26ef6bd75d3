"""Adds a ratio to batches of more than three pairs."""

import torch.nn.functional as F

from dpobench import Objective, Pairs, loss


@loss(source="none", beta_grid=(0.05, 0.1))
def ratio_of_large_batches(pairs: Pairs, *, beta: float = 0.1) -> Objective:
    """Faulty."""
    return Objective(-F.logsigmoid(beta * pairs.margin), (pairs.chosen.nll(),) if len(pairs) > 3 else ())
