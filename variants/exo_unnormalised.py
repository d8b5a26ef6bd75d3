"""Efficient exact optimization as its authors' code has it: the label's two probabilities do not add up to 1."""

import math

import torch
import torch.nn.functional as F

from dpobench import Pairs, PerPair, loss


@loss(
    source="Ji et al. 2024, arXiv:2402.00856, as implemented by the authors",
    beta_grid=(0.1, 0.5),
    bounds={"log_epsilon": "(-inf, 0)"},
    gradient="target",
    start=lambda log_epsilon: -math.log(2) - log_epsilon / 2,
)
def exo_unnormalised(pairs: Pairs, *, beta: float = 0.1, log_epsilon: float = -10.0) -> PerPair:
    r"""Reverse KL to the label $(1, \epsilon)$: $\sigma(z)\log\sigma(z) + \sigma(-z)\log\frac{\sigma(-z)}{\epsilon}$, $z=\beta\Delta$.

    The gradient vanishes at the margin $-\log\epsilon / \beta$ and reverses beyond it; it vanishes for a pair that is ranked very
    wrongly. The other reading, with a normalised target, is `exo`: at a smoothing of $\epsilon / (1 + \epsilon)$ the two
    differ by a constant, but its usual $\epsilon$ is larger.

    Args:
        pairs: B pairs; `pairs.margin` is $\Delta$, shape [B], in nats.
        beta: regularisation strength.
        log_epsilon: $\log\epsilon$, of the label's weight of the rejected answer, in nats.

    Returns: one loss per pair, shape [B]; $-\log 2 - \frac12\log\epsilon$, 4.31 at the default, wherever the policy still equals the
        reference.

    Example:
        >>> from dpobench.testing import example_pairs
        >>> pairs = example_pairs([0.0], [0.0])
        >>> exo_unnormalised(pairs, log_epsilon=-2.0)  # -log 2 + 1
        tensor([0.3069])
    """
    logits = beta * pairs.margin
    wrong = F.logsigmoid(-logits) - log_epsilon
    return torch.sigmoid(logits) * F.logsigmoid(logits) + torch.sigmoid(-logits) * wrong
