"""Divides by what the policy says."""

import torch.nn.functional as F

from dpobench import Objective, Pairs, Ratio, loss


@loss(source="none", beta_grid=(0.05, 0.1), stops_gradient=True)
def denominator_of_policy(pairs: Pairs, *, beta: float = 0.1) -> Objective:
    """Faulty."""
    weight = pairs.chosen.mean_logp.exp().detach()
    return Objective(
        -F.logsigmoid(beta * pairs.margin), (Ratio(-pairs.chosen.logp * weight, weight * pairs.chosen.length),)
    )
