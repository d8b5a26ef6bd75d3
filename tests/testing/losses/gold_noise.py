"""Reads noise of the gold answer, which has log-probabilities only."""

import torch.nn.functional as F

from dpobench import Pairs, PerPair, loss


@loss(source="none", beta_grid=(0.05, 0.1), needs=("gold", "noise"))
def gold_noise(pairs: Pairs, *, beta: float = 0.1) -> PerPair:
    """Faulty."""
    return -F.logsigmoid(beta * pairs.margin) - pairs.gold.mean("noise") * pairs.gold.mean_logp
