"""Has no target, declares one."""

import torch.nn.functional as F

from dpobench import Pairs, PerPair, loss


@loss(source="none", beta_grid=(0.05, 0.1), gradient="target")
def monotone_called_target(pairs: Pairs, *, beta: float = 0.1) -> PerPair:
    """Faulty."""
    return -F.logsigmoid(beta * pairs.margin)
