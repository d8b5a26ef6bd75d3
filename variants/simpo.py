"""Simple Preference Optimization: the margin of mean log-probabilities, without a reference."""

import torch.nn.functional as F

from dpobench import Pairs, PerPair, loss


@loss(
    source="Meng et al. 2024, arXiv:2405.14734, eq. 6",
    beta_grid=(2.0, 2.5, 5.0, 10.0),
    grids={"gamma_ratio": (0.0, 0.3, 0.5, 0.8)},
    bounds={"gamma_ratio": "[0, inf)"},
    unit="nat per token",
    reference=False,
)
def simpo(pairs: Pairs, *, beta: float = 2.0, gamma_ratio: float = 0.5) -> PerPair:
    r"""Logistic loss: $-\log\sigma(\beta\,[\bar p_w - \bar p_l - \gamma/\beta])$.

    As the authors do, the margin to be reached is given as $\gamma/\beta$; TRL, LLaMA-Factory, Liger and ms-swift take $\gamma$,
    which is this times beta.

    Args:
        pairs: B pairs; $\bar p$ is `mean_logp` of each side, shape [B], in nats per token.
        beta: scale of the reward; the larger, the sharper. Nothing holds the policy to a reference.
        gamma_ratio: $\gamma/\beta$, the margin at which the loss is log 2, nats per token.

    Returns: one loss per pair, shape [B].

    Example:
        >>> from dpobench.testing import example_pairs
        >>> pairs = example_pairs([2.0], [1.0])
        >>> simpo(pairs)  # 2 (-1 + 2 - 0.5) = 1: log(1 + e^-1)
        tensor([0.3133])
    """
    return -F.logsigmoid(beta * (pairs.chosen.mean_logp - pairs.rejected.mean_logp - gamma_ratio))
