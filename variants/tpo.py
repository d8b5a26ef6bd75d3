"""Triple Preference Optimization: a pair ranked without a reference, plus the likelihood of a third, best answer."""

import torch.nn.functional as F

from dpobench import Objective, Pairs, loss


@loss(
    source="Saeidi et al. 2024, arXiv:2405.16681, as implemented by TRL",
    beta_grid=(0.01, 0.05, 0.1, 0.3, 0.5),
    grids={"weight": (0.05, 0.5, 1.0)},
    bounds={"weight": "[0, inf)"},
    needs=("gold",),
    reference=False,
)
def tpo(pairs: Pairs, *, beta: float = 0.01, weight: float = 1.0) -> Objective:
    r"""Logistic loss and likelihood: $-\log\sigma(\beta\,[p_w - p_l])$ and $-\alpha \sum_i p_{g,i} / \sum_i n_{g,i}$.

    `cpo` with the gold answer in the place of the chosen one in the likelihood.

    Args:
        pairs: B pairs; $p$ is `logp` of each side, shape [B], in nats; `pairs.gold` holds $p_g$ and its length $n_g$.
        beta: scale of the margin of log-probabilities.
        weight: $\alpha$, of the gold answers' likelihood, a mean over all their tokens in the global batch.

    Returns: one loss per pair, shape [B], and the likelihood as a ratio.

    Example:
        >>> from dpobench.testing import example_pairs
        >>> pairs = example_pairs([2.0], [1.0], needs={"gold": 0.5})
        >>> tpo(pairs, beta=0.1).each()  # margin 1, gold answer -2.5: log(1 + e^-0.1) + 2.5
        tensor([3.1444])
    """
    return Objective(-F.logsigmoid(beta * (pairs.chosen.logp - pairs.rejected.logp)), (pairs.gold.nll(weight),))
