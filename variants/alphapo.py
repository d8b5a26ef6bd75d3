"""AlphaPO: SimPO with a bent reward."""

import torch.nn.functional as F

from dpobench import Pairs, PerPair, Side, loss


def reward(side: Side, alpha: float) -> PerPair:
    """Bent mean log-probability, shape [B]; a straight line beyond an exponent of 20, where float32 would soon overflow."""
    if alpha == 0:
        return side.mean_logp
    exponent = -alpha * side.mean_logp
    near = exponent.clamp(max=20.0)
    return -(near.expm1() + near.exp() * (exponent - near)) / alpha


@loss(
    source="Gupta et al. 2025, arXiv:2501.03884, as implemented by TRL",
    beta_grid=(2.0, 2.5, 5.0, 10.0),
    grids={"alpha": (-0.5, 0.1, 0.25), "gamma_ratio": (0.0, 0.04, 0.1, 0.3)},
    bounds={"gamma_ratio": "[0, inf)", "alpha": "(-inf, inf)"},
    unit="nat per token",
    reference=False,
)
def alphapo(pairs: Pairs, *, beta: float = 2.5, gamma_ratio: float = 0.04, alpha: float = 0.25) -> PerPair:
    r"""Logistic loss: $-\log\sigma(\beta\,[r_w - r_l - \gamma/\beta])$ with the reward $r = (1 - e^{-\alpha\bar p}) / \alpha$.

    A positive $\alpha$ makes unlikely answers matter more, a negative one likely answers. TRL takes $\gamma$, which is
    `gamma_ratio` times beta: its $\gamma = 0.1$ at a beta of 2.5 is the default here.

    Args:
        pairs: B pairs; $\bar p$ is `mean_logp` of each side, shape [B], in nats per token.
        beta: scale of the reward; the larger, the sharper. Nothing holds the policy to a reference.
        gamma_ratio: $\gamma/\beta$, the margin of rewards at which the loss is log 2.
        alpha: how far the reward is bent; 0 is SimPO.

    Returns: one loss per pair, shape [B].

    Example:
        >>> from dpobench.testing import example_pairs
        >>> pairs = example_pairs([2.0], [1.0])
        >>> alphapo(pairs, beta=1.0)  # r = (1 - e^0.25) / 0.25 and (1 - e^0.5) / 0.25: log(1 + e^-1.4188)
        tensor([0.2167])
    """
    return -F.logsigmoid(beta * (reward(pairs.chosen, alpha) - reward(pairs.rejected, alpha) - gamma_ratio))
