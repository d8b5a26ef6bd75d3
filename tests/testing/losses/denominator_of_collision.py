"""Divides by a need that is taken from the policy."""

import torch.nn.functional as F

from dpobench import Objective, Pairs, Ratio, loss


@loss(source="none", beta_grid=(0.05, 0.1), needs=("collision",))
def denominator_of_collision(pairs: Pairs, *, beta: float = 0.1) -> Objective:
    """Faulty."""
    weight = pairs.chosen.mean("collision").exp()
    return Objective(
        -F.logsigmoid(beta * pairs.margin), (Ratio(-pairs.chosen.logp * weight, weight * pairs.chosen.length),)
    )
