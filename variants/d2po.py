"""D2PO: DPO with temporal decay, earlier tokens counting more."""

import math

import torch
import torch.nn.functional as F

from dpobench import Pairs, PerPair, Side, loss


@loss(
    source="Shao et al. 2025, arXiv:2502.14340, as implemented by the authors",
    beta_grid=(0.01, 0.05, 0.1, 0.3, 0.5),
    bounds={"gamma": "(0, 1]"},
    start=math.log(2),
)
def d2po(pairs: Pairs, *, beta: float = 0.1, gamma: float = 0.98) -> PerPair:
    r"""DPO on discounted log-ratios $A = \sum_{t \ge 1} \gamma^t a_t$: $-\log\sigma(\beta(A_w - A_l))$.

    Counted from 1, the first token already carries one $\gamma$; counted from 0, $\beta$ would be larger by that factor. Not the
    discriminator-guided online DPO that goes by the same name.

    Args:
        pairs: B pairs; $a_t$ is policy minus reference at token t, in nats.
        beta: regularisation strength.
        gamma: $\gamma$, what a token counts relative to the one before; 1 is DPO.

    Returns: one loss per pair, shape [B]; log 2 wherever the policy still equals the reference.

    Example:
        >>> from dpobench.testing import example_pairs
        >>> pairs = example_pairs([2.0], [-1.0], tokens=(2, 1))
        >>> d2po(pairs, gamma=0.5)  # 0.5 + 0.25 and -0.5: log(1 + e^-0.125)
        tensor([0.6326])
    """
    return -F.logsigmoid(beta * (_discounted(pairs.chosen, gamma) - _discounted(pairs.rejected, gamma)))


def _discounted(side: Side, gamma: float) -> PerPair:
    weight = gamma ** side.mask.cumsum(-1).to(side.policy.dtype)
    return torch.where(side.mask, weight * (side.policy - side.reference), 0.0).sum(-1)
