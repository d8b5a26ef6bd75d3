"""DPO under the Jensen-Shannon divergence in the place of the reverse KL divergence."""

import math

import torch.nn.functional as F

from dpobench import Pairs, PerPair, loss


@loss(
    source="Wang et al. 2023, arXiv:2309.16240, Jensen-Shannon",
    beta_grid=(0.01, 0.1),
    start=math.log(2),
)
def f_dpo_js(pairs: Pairs, *, beta: float = 0.1) -> PerPair:
    r"""Logistic loss on damped log-ratios: $-\log\sigma(\beta(\log\sigma(a) - \log\sigma(b)))$.

    An answer that became likelier stops counting; the constant log 2 of the divergence's derivative cancels. Where $b = -a$ it is
    `dpo` at half the beta.

    Args:
        pairs: B pairs; $a$ is the log-ratio of the chosen answer, $b$ of the rejected one, shape [B], in nats.
        beta: regularisation strength.

    Returns: one loss per pair, shape [B]; log 2 wherever the policy still equals the reference.

    Example:
        >>> from dpobench.testing import example_pairs
        >>> pairs = example_pairs([1.0], [-1.0])
        >>> f_dpo_js(pairs, beta=0.1)  # log sigmoid(1) - log sigmoid(-1) = 1: log(1 + e^-0.1)
        tensor([0.6444])
    """
    return -F.logsigmoid(beta * (F.logsigmoid(pairs.chosen.logratio) - F.logsigmoid(pairs.rejected.logratio)))
