"""DiscoPOP: the log-ratio modulated loss, the result of a language model's search over losses."""

import math

import torch
import torch.nn.functional as F

from dpobench import Pairs, PerPair, loss


@loss(
    source="Lu et al. 2024, arXiv:2406.08414, eq. 5",
    beta_grid=(0.01, 0.05, 0.1),
    bounds={"tau": "(0, 1]"},
    gradient="free",
    start=(math.log(2) + 1) / 2,
)
def discopop(pairs: Pairs, *, beta: float = 0.05, tau: float = 0.05) -> PerPair:
    r"""Logistic and exponential loss blended by the margin: $-\sigma(-z/\tau)\log\sigma(z) + \sigma(z/\tau)e^{-z}$, $z=\beta\Delta$.

    Not monotone: with the default temperature the slope at the start is +0.78 in $z$, so the first steps push the chosen answer
    *down*, to a local minimum at $z = -0.12$. The second term is taken as $\exp(\log\sigma(z/\tau) - z)$; written as a product it is
    infinity times 0 for pairs that are ranked very wrongly. A temperature above 1 is refused: that term would explode there.

    Args:
        pairs: B pairs; `pairs.margin` is $\Delta$, shape [B], in nats.
        beta: regularisation strength.
        tau: $\tau$, temperature of the blend, in units of $z$.

    Returns: one loss per pair, shape [B]; $(\log 2 + 1) / 2$ wherever the policy still equals the reference.

    Example:
        >>> from dpobench.testing import example_pairs
        >>> pairs = example_pairs([1.0], [0.0])
        >>> discopop(pairs, beta=1.0, tau=1.0)  # sigmoid(-1) log(1 + e^-1) + sigmoid(1) e^-1
        tensor([0.3532])
    """
    logits = beta * pairs.margin
    exponential = torch.exp(F.logsigmoid(logits / tau) - logits)
    return exponential - torch.sigmoid(-logits / tau) * F.logsigmoid(logits)
