"""Takes a second hyper-parameter with a grid and does not use it."""

import torch.nn.functional as F

from dpobench import Pairs, PerPair, loss


@loss(source="none", beta_grid=(0.05, 0.1), grids={"flip": (0.1, 0.2)})
def second_unused(pairs: Pairs, *, beta: float = 0.1, flip: float = 0.1) -> PerPair:
    """Faulty."""
    return -F.logsigmoid(beta * pairs.margin)
