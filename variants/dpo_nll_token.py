"""DPO plus the negative log-likelihood of the chosen answers, a mean over all their tokens."""

import torch.nn.functional as F

from dpobench import Objective, Pairs, loss


@loss(
    source="DPO with a likelihood term averaged over tokens, as implemented by TRL (loss types sigmoid and sft)",
    beta_grid=(0.01, 0.05, 0.1, 0.3, 0.5),
    grids={"weight": (0.005, 0.1, 1.0)},
    bounds={"weight": "[0, inf)"},
)
def dpo_nll_token(pairs: Pairs, *, beta: float = 0.1, weight: float = 1.0) -> Objective:
    r"""Logistic loss and likelihood: $-\log\sigma(\beta\,\Delta)$ and $-\alpha \sum_i p_{w,i} / \sum_i n_{w,i}$ over the global batch.

    Every token counts alike, so a long answer counts more; `dpo_nll` takes the mean of each answer, `dpo_nll_sum` its sum.

    Args:
        pairs: B pairs; `pairs.margin` is $\Delta$, `pairs.chosen.logp` $p_w$, shape [B], in nats; `pairs.chosen.length` is $n_w$.
        beta: regularisation strength.
        weight: $\alpha$, of the likelihood relative to DPO; 0 is DPO.

    Returns: one loss per pair, shape [B], and the likelihood as a ratio.

    Example:
        >>> from dpobench.testing import example_pairs
        >>> pairs = example_pairs([2.0, 2.0], [-1.0, -1.0], tokens=(2, 1))
        >>> dpo_nll_token(pairs, weight=0.1).each()  # 8 nats on 4 tokens: log(1 + e^-0.3) + 0.1 x 2
        tensor([0.7544, 0.7544])
    """
    return Objective(-F.logsigmoid(beta * pairs.margin), (pairs.chosen.nll(weight),))
