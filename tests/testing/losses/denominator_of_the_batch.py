"""The denominator of each pair is that of the batch."""

import torch.nn.functional as F

from dpobench import Objective, Pairs, Ratio, loss


@loss(source="none", beta_grid=(0.05, 0.1))
def denominator_of_the_batch(pairs: Pairs, *, beta: float = 0.1) -> Objective:
    """Faulty."""
    whole = pairs.chosen.length.mean().expand(len(pairs))
    return Objective(-F.logsigmoid(beta * pairs.margin), (Ratio(-pairs.chosen.logp, whole),))
