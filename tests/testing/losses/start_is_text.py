"""Says where it starts in words."""

import torch.nn.functional as F

from dpobench import Pairs, PerPair, loss


@loss(source="none", beta_grid=(0.05, 0.1), start="log 2")
def start_is_text(pairs: Pairs, *, beta: float = 0.1) -> PerPair:
    """Faulty."""
    return -F.logsigmoid(beta * pairs.margin)
