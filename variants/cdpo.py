"""Conservative DPO: DPO that expects some labels to be wrong."""

import math

import torch.nn.functional as F

from dpobench import Pairs, PerPair, loss


@loss(
    source="Mitchell 2023, 'A note on DPO with noisy preferences and relationship to IPO', eq. 3",
    beta_grid=(0.01, 0.05, 0.1, 0.3, 0.5),
    grids={"flip": (0.05, 0.1, 0.2)},
    bounds={"flip": "[0, 0.5)"},
    gradient="target",
    start=math.log(2),
    states_probability=True,
)
def cdpo(pairs: Pairs, *, beta: float = 0.1, flip: float = 0.1) -> PerPair:
    r"""Cross-entropy to a soft label: $-(1-\epsilon)\log\sigma(\beta\Delta) - \epsilon\log\sigma(-\beta\Delta)$.

    The gradient vanishes at the finite margin $\log\frac{1-\epsilon}{\epsilon} / \beta$ and reverses beyond it. Not to be confused with
    "robust" DPO, which subtracts the second term.

    Args:
        pairs: B pairs; `pairs.margin` is $\Delta$, shape [B], in nats.
        beta: regularisation strength.
        flip: $\epsilon$, the share of labels taken to be flipped; 0 is DPO.

    Returns: one loss per pair, shape [B]; log 2 wherever the policy still equals the reference.

    Example:
        >>> from dpobench.testing import example_pairs
        >>> pairs = example_pairs([2.0], [-1.0])
        >>> cdpo(pairs)  # 0.9 log(1 + e^-0.3) + 0.1 log(1 + e^0.3)
        tensor([0.5844])
    """
    logits = beta * pairs.margin
    return -(1 - flip) * F.logsigmoid(logits) - flip * F.logsigmoid(-logits)
