"""Its need is computed with an epsilon that it does not have."""

import torch.nn.functional as F

from dpobench import Pairs, PerPair, loss


@loss(source="none", beta_grid=(0.05, 0.1), needs=("extrapolated",))
def epsilon_missing(pairs: Pairs, *, beta: float = 0.1) -> PerPair:
    """Faulty."""
    return -F.logsigmoid(beta * pairs.margin) * (pairs.chosen.total("extrapolated") - pairs.chosen.logp.detach()).exp()
