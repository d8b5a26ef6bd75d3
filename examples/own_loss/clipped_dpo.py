"""DPO with a clipped margin: a loss of your own, in a file of your own."""

import math

import torch.nn.functional as F

from dpobench import Pairs, PerPair, loss


@loss(
    source="example",
    beta_grid=(0.05, 0.1, 0.5),
    grids={"longest": (5.0, 20.0)},
    bounds={"longest": "(0, inf)"},
    start=math.log(2),
)
def clipped_dpo(pairs: Pairs, *, beta: float = 0.1, longest: float = 20.0) -> PerPair:
    r"""Logistic loss on a margin that saturates: $-\log\sigma(\beta L \tanh(\Delta / L))$.

    Args:
        pairs: B pairs; `pairs.margin` is $\Delta$, shape [B], in nats.
        beta: regularisation strength, per nat.
        longest: L, the margin in nats beyond which a pair counts as learned.

    Returns: one loss per pair, shape [B]; log 2 where the policy still equals the reference.
    """
    return -F.logsigmoid(beta * longest * (pairs.margin / longest).tanh())
