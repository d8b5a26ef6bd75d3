"""Efficient exact optimization on preference pairs: the reverse KL divergence to a smoothed label."""

import math

import torch
import torch.nn.functional as F

from dpobench import Pairs, PerPair, loss


@loss(
    source="Ji et al. 2024, arXiv:2402.00856, eq. 16",
    beta_grid=(0.1, 0.5),
    bounds={"smoothing": "(0, 0.5)"},
    gradient="target",
    start=lambda smoothing: -math.log(2) - (math.log(smoothing) + math.log1p(-smoothing)) / 2,
)
def exo(pairs: Pairs, *, beta: float = 0.1, smoothing: float = 1e-3) -> PerPair:
    r"""Reverse KL to a label: $\sigma(z)\log\frac{\sigma(z)}{1-\epsilon} + \sigma(-z)\log\frac{\sigma(-z)}{\epsilon}$, $z=\beta\Delta$.

    The gradient vanishes at the margin $\log\frac{1-\epsilon}{\epsilon} / \beta$ and reverses beyond it. It also vanishes for a pair
    that is ranked very wrongly, which then cannot recover. This is the reading with a normalised target, $(1-\epsilon, \epsilon)$, as in
    TRL and Liger; the authors' code has the target $(1, e^{-10})$: `exo_unnormalised`.

    Args:
        pairs: B pairs; `pairs.margin` is $\Delta$, shape [B], in nats.
        beta: regularisation strength.
        smoothing: $\epsilon$, the label's probability of the rejected answer.

    Returns: one loss per pair, shape [B]; $-\log 2 - \frac12\log(\epsilon(1-\epsilon))$, 2.76 at the default, wherever the policy still
        equals the reference.

    Example:
        >>> from dpobench.testing import example_pairs
        >>> pairs = example_pairs([0.0], [0.0])
        >>> exo(pairs, smoothing=0.1)  # -log 2 - log(0.1 x 0.9) / 2
        tensor([0.5108])
    """
    logits = beta * pairs.margin
    right = F.logsigmoid(logits) - math.log1p(-smoothing)
    wrong = F.logsigmoid(-logits) - math.log(smoothing)
    return torch.sigmoid(logits) * right + torch.sigmoid(-logits) * wrong
