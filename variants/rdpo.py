"""Robust DPO: DPO corrected for a known share of flipped labels."""

import math

import torch.nn.functional as F

from dpobench import Pairs, PerPair, loss


@loss(
    source="Ray Chowdhury et al. 2024, arXiv:2403.00409",
    beta_grid=(0.01, 0.05, 0.1),
    grids={"flip": (0.05, 0.1, 0.2)},
    bounds={"flip": "[0, 0.5)"},
    start=math.log(2),
    states_probability=True,
)
def rdpo(pairs: Pairs, *, beta: float = 0.1, flip: float = 0.1) -> PerPair:
    r"""DPO minus what flipped labels add to it: $\frac{(1-\epsilon)\ell(\Delta) - \epsilon\ell(-\Delta)}{1-2\epsilon}$.

    With $\ell(\Delta) = -\log\sigma(\beta\Delta)$, the loss of DPO. Averaged over labels of which a share $\epsilon$ is flipped it is
    DPO on the true ones. It equals $\ell(\Delta) - \frac{\epsilon}{1-2\epsilon}\beta\Delta$: the gradient never falls below
    $\frac{\epsilon}{1-2\epsilon}\beta$ and the loss has no lower bound, so watch the margin in long training. Also called
    "robust"; `cdpo`, which some call robust too, adds the second term instead of subtracting it.

    Args:
        pairs: B pairs; `pairs.margin` is $\Delta$, shape [B], in nats.
        beta: regularisation strength.
        flip: $\epsilon$, the share of labels taken to be flipped; 0 is DPO.

    Returns: one loss per pair, shape [B]; log 2 wherever the policy still equals the reference.

    Example:
        >>> from dpobench.testing import example_pairs
        >>> pairs = example_pairs([2.0], [-1.0])
        >>> rdpo(pairs)  # (0.9 log(1 + e^-0.3) - 0.1 log(1 + e^0.3)) / 0.8
        tensor([0.5169])
    """
    logits = beta * pairs.margin
    return (-(1 - flip) * F.logsigmoid(logits) + flip * F.logsigmoid(-logits)) / (1 - 2 * flip)
