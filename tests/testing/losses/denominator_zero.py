"""An answer of one token counts nothing."""

import torch.nn.functional as F

from dpobench import Objective, Pairs, Ratio, loss


@loss(source="none", beta_grid=(0.05, 0.1))
def denominator_zero(pairs: Pairs, *, beta: float = 0.1) -> Objective:
    """Faulty."""
    return Objective(-F.logsigmoid(beta * pairs.margin), (Ratio(-pairs.chosen.logp, pairs.chosen.length - 1),))
