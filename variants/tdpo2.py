"""Token-level DPO, second form: a weighted correction whose gradient reaches the rejected answer's drift only."""

import math

import torch.nn.functional as F

from dpobench import Pairs, PerPair, loss


@loss(
    source="Zeng et al. 2024, arXiv:2404.11999, as implemented by the authors",
    beta_grid=(0.01, 0.05, 0.1, 0.3, 0.5),
    grids={"alpha": (0.3, 0.5, 0.7)},
    bounds={"alpha": "[0, inf)"},
    needs=("reference_kl",),
    gradient="free",
    stops_gradient=True,
    start=math.log(2),
)
def tdpo2(pairs: Pairs, *, beta: float = 0.1, alpha: float = 0.5) -> PerPair:
    r"""Logistic loss: $-\log\sigma(\beta\,[\Delta - \alpha(S_l - \mathrm{sg}\,S_w)])$, $S = \sum_t \mathrm{KL}(\pi_{ref} \| \pi)$.

    The chosen answer's divergence $S_w$ counts in the value and is held constant in the gradient (sg). Through $S_l$, which
    depends on tokens that are not in the answer too, the loss promises no sign.

    Args:
        pairs: B pairs; `pairs.margin` is $\Delta$, shape [B], in nats; extra "reference_kl", shape [B, T], in nats.
        beta: regularisation strength.
        alpha: weight of the divergences in the margin; 0 is DPO, 1 has the value of `tdpo1`.

    Returns: one loss per pair, shape [B]; log 2 wherever the policy still equals the reference.

    Example:
        >>> from dpobench.testing import example_pairs
        >>> pairs = example_pairs([2.0], [-1.0], tokens=(1, 2), needs={"reference_kl": 0.5})
        >>> tdpo2(pairs, alpha=0.5)  # 3 - 0.5 (1 - 0.5) = 2.75: log(1 + e^-0.275)
        tensor([0.5651])
    """
    drift = pairs.rejected.total("reference_kl") - pairs.chosen.total("reference_kl").detach()
    return -F.logsigmoid(beta * (pairs.margin - alpha * drift))
