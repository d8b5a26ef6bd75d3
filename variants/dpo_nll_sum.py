"""DPO plus the negative log-likelihood of the whole chosen answer."""

import torch.nn.functional as F

from dpobench import Pairs, PerPair, loss


@loss(
    source="DPO with a summed likelihood term, as implemented by NeMo-RL",
    beta_grid=(0.01, 0.05, 0.1, 0.3, 0.5),
    grids={"weight": (0.005, 0.1, 1.0)},
    bounds={"weight": "[0, inf)"},
)
def dpo_nll_sum(pairs: Pairs, *, beta: float = 0.1, weight: float = 1.0) -> PerPair:
    r"""Logistic loss and likelihood: $-\log\sigma(\beta\,\Delta) - \alpha\,p_w$.

    At n tokens an answer, a weight here acts like n times that weight in `dpo_nll`: at 1 the likelihood outweighs DPO by far.

    Args:
        pairs: B pairs; `pairs.margin` is $\Delta$, `pairs.chosen.logp` $p_w$, shape [B], in nats.
        beta: regularisation strength.
        weight: $\alpha$, of the likelihood relative to DPO; 0 is DPO.

    Returns: one loss per pair, shape [B].

    Example:
        >>> from dpobench.testing import example_pairs
        >>> pairs = example_pairs([2.0], [-1.0], tokens=(2, 1))
        >>> dpo_nll_sum(pairs, weight=0.1)  # log-probability -4: log(1 + e^-0.3) + 0.1 x 4
        tensor([0.9544])
    """
    return -F.logsigmoid(beta * pairs.margin) - weight * pairs.chosen.logp
