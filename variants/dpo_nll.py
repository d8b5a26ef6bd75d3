"""DPO plus the negative log-likelihood of the chosen answer, a mean over its tokens."""

import torch.nn.functional as F

from dpobench import Pairs, PerPair, loss


@loss(
    source="Pang et al. 2024, arXiv:2404.19733, with the per-answer mean as implemented by OAT and SamPO",
    beta_grid=(0.01, 0.05, 0.1, 0.3, 0.5),
    grids={"weight": (0.005, 0.1, 1.0)},
    bounds={"weight": "[0, inf)"},
)
def dpo_nll(pairs: Pairs, *, beta: float = 0.1, weight: float = 1.0) -> PerPair:
    r"""Logistic loss and likelihood: $-\log\sigma(\beta\,\Delta) - \alpha\,\bar p_w$.

    Every answer counts alike, whatever its length. The same name stands elsewhere for a mean over all tokens of the batch
    (`dpo_nll_token`) and for a sum over each answer (`dpo_nll_sum`). Also called RPO.

    Args:
        pairs: B pairs; `pairs.margin` is $\Delta$, shape [B], in nats; `pairs.chosen.mean_logp` is $\bar p_w$, nats per token.
        beta: regularisation strength.
        weight: $\alpha$, of the likelihood relative to DPO; 0 is DPO.

    Returns: one loss per pair, shape [B].

    Example:
        >>> from dpobench.testing import example_pairs
        >>> pairs = example_pairs([2.0], [-1.0], tokens=(2, 1))
        >>> dpo_nll(pairs, weight=0.1)  # mean log-probability -2: log(1 + e^-0.3) + 0.1 x 2
        tensor([0.7544])
    """
    return -F.logsigmoid(beta * pairs.margin) - weight * pairs.chosen.mean_logp
