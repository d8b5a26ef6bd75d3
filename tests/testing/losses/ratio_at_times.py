"""Adds a ratio where the policy is far from the reference."""

import torch.nn.functional as F

from dpobench import Objective, Pairs, loss


@loss(source="none", beta_grid=(0.05, 0.1))
def ratio_at_times(pairs: Pairs, *, beta: float = 0.1) -> Objective:
    """Faulty."""
    ratios = (pairs.chosen.nll(),) if pairs.chosen.logratio.mean() < 0.5 else ()
    return Objective(-F.logsigmoid(beta * pairs.margin), ratios)
