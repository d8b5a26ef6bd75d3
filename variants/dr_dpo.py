"""Distributionally robustified DPO: pairs that fit badly count less, as if mislabelled."""

import math

import torch
import torch.nn.functional as F

from dpobench import Pairs, PerPair, loss


@loss(
    source="Wu et al. 2024, arXiv:2407.07880, as implemented by the authors",
    beta_grid=(0.01, 0.05, 0.1, 0.3, 0.5),
    grids={"temperature": (0.1, 0.5, 1.0, 10.0)},
    bounds={"temperature": "(0, inf)"},
    couples_batch=True,
    start=math.log(2),
)
def dr_dpo(pairs: Pairs, *, beta: float = 0.1, temperature: float = 1.0) -> PerPair:
    r"""Soft minimum of the DPO losses of the batch: $-\beta'\log\frac1B\sum_i\exp(-\ell_i / \beta')$.

    Each pair's gradient has the weight $\exp(-\ell_i / \beta')$ relative to the others.

    Args:
        pairs: B pairs; `pairs.margin` is $\Delta$, shape [B], in nats, and $\ell = -\log\sigma(\beta\Delta)$.
        beta: regularisation strength.
        temperature: $\beta'$; towards 0 the best fitted pair alone counts, towards infinity the mean, which is DPO.

    Returns: the batch's value for every pair, shape [B]; log 2 wherever the policy still equals the reference.

    Example:
        >>> from dpobench.testing import example_pairs
        >>> pairs = example_pairs([3.0, 0.0], [0.0, 0.0])
        >>> dr_dpo(pairs, beta=0.1)  # -log of the mean of sigmoid(0.3) and sigmoid(0)
        tensor([0.6213, 0.6213])
    """
    scaled = F.logsigmoid(beta * pairs.margin) / temperature
    return (temperature * (math.log(len(pairs)) - torch.logsumexp(scaled, 0))).expand(len(pairs))
