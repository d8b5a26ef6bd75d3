"""The weight of a ratio is taken from the batch."""

import torch.nn.functional as F

from dpobench import Objective, Pairs, loss


@loss(source="none", beta_grid=(0.05, 0.1))
def ratio_weight_of_batch(pairs: Pairs, *, beta: float = 0.1) -> Objective:
    """Faulty."""
    return Objective(-F.logsigmoid(beta * pairs.margin), (pairs.chosen.nll(pairs.margin.mean()),))
