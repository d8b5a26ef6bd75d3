"""Contrastive Preference Optimization: DPO without a reference, plus the likelihood of the chosen answers."""

import torch.nn.functional as F

from dpobench import Objective, Pairs, loss


@loss(
    source="Xu et al. 2024, arXiv:2401.08417, as implemented by TRL",
    beta_grid=(0.01, 0.05, 0.1, 0.3, 0.5),
    grids={"weight": (0.05, 0.5, 1.0)},
    bounds={"weight": "[0, inf)"},
    reference=False,
)
def cpo(pairs: Pairs, *, beta: float = 0.1, weight: float = 1.0) -> Objective:
    r"""Logistic loss and likelihood: $-\log\sigma(\beta\,[p_w - p_l])$ and $-\lambda \sum_i p_{w,i} / \sum_i n_{w,i}$.

    Sums in the first part, a mean over all tokens of the global batch in the second. Without a reference, a longer answer's sum
    is the lower one as a rule, whatever its worth.

    Args:
        pairs: B pairs; $p$ is `logp` of each side, shape [B], in nats; `pairs.chosen.length` is $n_w$.
        beta: scale of the margin of log-probabilities.
        weight: $\lambda$, of the likelihood relative to the logistic part.

    Returns: one loss per pair, shape [B], and the likelihood as a ratio.

    Example:
        >>> from dpobench.testing import example_pairs
        >>> pairs = example_pairs([2.0], [1.0])
        >>> cpo(pairs).each()  # log-probabilities -1 and -2: log(1 + e^-0.1) + 1
        tensor([1.6444])
    """
    return Objective(-F.logsigmoid(beta * (pairs.chosen.logp - pairs.rejected.logp)), (pairs.chosen.nll(weight),))
