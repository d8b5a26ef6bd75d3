"""Adds up a ratio by itself."""

import torch.nn.functional as F

from dpobench import Objective, Pairs, Ratio, loss


@loss(source="none", beta_grid=(0.05, 0.1))
def ratio_wrong_shape(pairs: Pairs, *, beta: float = 0.1) -> Objective:
    """Faulty."""
    return Objective(-F.logsigmoid(beta * pairs.margin), (Ratio(-pairs.chosen.logp.sum(), pairs.chosen.length),))
