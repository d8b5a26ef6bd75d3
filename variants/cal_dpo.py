"""Calibrated DPO: DPO that also sets how far either answer is to move."""

import math

import torch.nn.functional as F

from dpobench import Pairs, PerPair, loss


@loss(
    source="Xiao et al. 2024, arXiv:2412.14516, as implemented by the authors",
    beta_grid=(0.001, 0.002, 0.01),
    unit="target nat",
    bounds={"weight": "[0, inf)"},
    gradient="target",
    start=lambda beta, weight: math.log(2) + weight / (2 * beta**2),
)
def cal_dpo(pairs: Pairs, *, beta: float = 0.001, weight: float = 0.5) -> PerPair:
    r"""DPO without beta, plus a calibration: $-\log\sigma(\Delta) + w[(a - \frac{1}{2\beta})^2 + (b + \frac{1}{2\beta})^2]$.

    Everything but the name of w is the authors' code: no beta in the logistic term, a weight of 1/2, a mean over pairs. The
    calibration is w times `sppo_hard`, and far larger than the logistic term at the start: its gradient there is clipped at every
    step.

    Args:
        pairs: B pairs; log-ratios a and b and their difference $\Delta$, shape [B], in nats.
        beta: the targets are half its inverse, in nats, up for the chosen, down for the rejected.
        weight: w, of the calibration relative to the logistic term.

    Returns: one loss per pair, shape [B]; $\log 2 + w / (2\beta^2)$ wherever the policy still equals the reference.

    Example:
        >>> from dpobench.testing import example_pairs
        >>> pairs = example_pairs([2.0], [-1.0])
        >>> cal_dpo(pairs, beta=0.25)  # targets 2 and -2: log(1 + e^-3) + 0.5 (0 + 1)
        tensor([0.5486])
    """
    target = 1 / (2 * beta)
    calibration = (pairs.chosen.logratio - target).square() + (pairs.rejected.logratio + target).square()
    return -F.logsigmoid(pairs.margin) + weight * calibration
