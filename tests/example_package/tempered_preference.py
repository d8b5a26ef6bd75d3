"""Tempered DPO, a loss that lives in a package of its own."""

import math

import torch.nn.functional as F

from dpobench import Pairs, PerPair, loss


@loss(
    source="example of dpobench's documentation",
    beta_grid=(0.05, 0.1, 0.5),
    grids={"temperature": (1.0, 2.0, 4.0)},
    bounds={"temperature": "(0, inf)"},
    start=lambda temperature: temperature * math.log(2),
)
def tempered_dpo(pairs: Pairs, *, beta: float = 0.1, temperature: float = 2.0) -> PerPair:
    r"""Logistic loss with a temperature: $-T\log\sigma(\beta\,\Delta / T)$.

    Args:
        pairs: B pairs; `pairs.margin` is $\Delta$, shape [B], in nats.
        beta: strength of the pull to the reference.
        temperature: $T$; the pull of a pair fades out T times as slowly as that of DPO.

    Returns: one loss per pair, shape [B]; T log 2 wherever the policy still equals the reference.
    """
    return -temperature * F.logsigmoid(beta * pairs.margin / temperature)
