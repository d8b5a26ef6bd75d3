"""DPO-Positive (Smaug): DPO that minds when the chosen answer becomes less likely."""

import math

import torch.nn.functional as F

from dpobench import Pairs, PerPair, loss


@loss(
    source="Pal et al. 2024, arXiv:2402.13228, eq. 3",
    beta_grid=(0.1, 0.3),
    grids={"penalty": (5.0, 50.0)},
    bounds={"penalty": "[0, inf)"},
    start=math.log(2),
)
def dpop(pairs: Pairs, *, beta: float = 0.3, penalty: float = 50.0) -> PerPair:
    r"""Margin less a penalty for a chosen answer below the reference: $-\log\sigma(\beta[\Delta - \lambda\max(0, -a)])$.

    The penalty stands inside the log-sigmoid, multiplied by beta; a widely copied snippet, since corrected, had it outside.

    Args:
        pairs: B pairs; `pairs.margin` $\Delta$ and the chosen log-ratio a, shape [B], in nats.
        beta: regularisation strength.
        penalty: $\lambda$, nats of margin for each nat that the chosen answer has lost; 0 is DPO.

    Returns: one loss per pair, shape [B]; log 2 wherever the policy still equals the reference.

    Example:
        >>> from dpobench.testing import example_pairs
        >>> pairs = example_pairs([-1.0], [-3.0])
        >>> dpop(pairs, beta=0.1, penalty=5.0)  # 2 - 5 x 1 = -3: log(1 + e^0.3)
        tensor([0.8544])
    """
    return -F.logsigmoid(beta * (pairs.margin - penalty * F.relu(-pairs.chosen.logratio)))
