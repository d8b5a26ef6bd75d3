"""Length-regularised DPO."""

import torch.nn.functional as F

from dpobench import Pairs, PerPair, loss


@loss(
    source="Park et al. 2024, arXiv:2403.19159, eq. 9",
    beta_grid=(0.01, 0.05, 0.1),
    grids={"alpha": (0.005, 0.02, 0.05, 0.1)},
    bounds={"alpha": "[0, inf)"},
)
def r_dpo(pairs: Pairs, *, beta: float = 0.1, alpha: float = 0.05) -> PerPair:
    r"""Logistic loss on the margin and the difference of lengths: $-\log\sigma(\beta\Delta + \alpha(n_w - n_l))$.

    Length explains a part of the preference, so a longer chosen answer has less gradient and a shorter one more. The sign is that of the
    equation as SamPO and OAT implement it; the code of alpha-DPO has a loss of this name with the opposite sign.

    Args:
        pairs: B pairs; `pairs.margin` is $\Delta$, in nats, and $n_w$, $n_l$ are the lengths in tokens, shape [B] each.
        beta: regularisation strength.
        alpha: $\alpha$, per token of difference; 0 is DPO.

    Returns: one loss per pair, shape [B]; $\log(1 + e^{-\alpha(n_w - n_l)})$ wherever the policy still equals the reference: log 2
        for answers of equal length.

    Example:
        >>> from dpobench.testing import example_pairs
        >>> pairs = example_pairs([2.0], [-1.0], tokens=(3, 1))
        >>> r_dpo(pairs, alpha=0.05)  # 0.3 + 0.05 x 2: log(1 + e^-0.4)
        tensor([0.5130])
    """
    return -F.logsigmoid(beta * pairs.margin + alpha * (pairs.chosen.length - pairs.rejected.length))
