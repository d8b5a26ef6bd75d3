"""Sums what stands at masked positions."""

import torch.nn.functional as F

from dpobench import Pairs, PerPair, loss


@loss(source="none", beta_grid=(0.05, 0.1))
def ignores_mask(pairs: Pairs, *, beta: float = 0.1) -> PerPair:
    """Faulty."""
    chosen, rejected = pairs.chosen, pairs.rejected
    return -F.logsigmoid(
        beta * ((chosen.policy - chosen.reference).sum(-1) - (rejected.policy - rejected.reference).sum(-1))
    )
