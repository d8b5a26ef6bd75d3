"""Couples pairs by their spread, which may be zero."""

import torch.nn.functional as F

from dpobench import Pairs, PerPair, loss


@loss(source="none", beta_grid=(0.05, 0.1), couples_batch=True, stops_gradient=True)
def std_of_batch(pairs: Pairs, *, beta: float = 0.1) -> PerPair:
    """Faulty."""
    spread = pairs.margin.std(correction=0).detach()
    return -F.logsigmoid(beta * pairs.margin / spread)
