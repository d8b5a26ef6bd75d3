"""The gradient flows through a denominator whose value stays."""

import torch.nn.functional as F

from dpobench import Objective, Pairs, Ratio, loss


@loss(source="none", beta_grid=(0.05, 0.1))
def denominator_with_gradient(pairs: Pairs, *, beta: float = 0.1) -> Objective:
    """Faulty."""
    length = pairs.chosen.length + pairs.chosen.logp - pairs.chosen.logp.detach()
    return Objective(-F.logsigmoid(beta * pairs.margin), (Ratio(-pairs.chosen.logp, length),))
