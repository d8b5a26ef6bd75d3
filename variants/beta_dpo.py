"""Beta-DPO: beta follows the batch's margin, and pairs with unusual margins are left out."""

import torch
import torch.nn.functional as F
from torch import Tensor

from dpobench import Pairs, PerPair, loss


def init() -> dict[str, float]:
    """No batch yet; a spread of one nat stands in until a batch has two pairs."""
    return {"mean": 0.0, "std": 1.0, "count": 0.0}


def update(pairs: Pairs, statistics: dict[str, float]) -> dict[str, Tensor | float]:
    """Mean and spread of the margin over batches, each step forgetting a tenth; unbiased from the first batch on."""
    count = statistics["count"] + 1
    new = (1 - 0.9) / (1 - 0.9**count)
    std = pairs.margin.std() if len(pairs) > 1 else statistics["std"]
    return {
        "mean": (1 - new) * statistics["mean"] + new * pairs.margin.mean(),
        "std": (1 - new) * statistics["std"] + new * std,
        "count": count,
    }


@loss(
    source="Wu et al. 2024, arXiv:2407.08639, as implemented by the authors, with averages corrected for their start",
    beta_grid=(0.01, 0.05, 0.1, 0.3, 0.5),
    bounds={"gain": "[0, inf)", "drop": "[0, 1)"},
    couples_batch=True,
    stops_gradient=True,
    needs=("noise",),
    running=(init, update),
)
def beta_dpo(pairs: Pairs, *, beta: float = 0.1, gain: float = 0.6, drop: float = 0.2) -> PerPair:
    r"""DPO on a part of the batch, $-\log\sigma(\beta_b\Delta)$ with $\beta_b = \beta[1 + g(\overline\Delta - \mu)]$ held constant.

    The part is drawn without replacement with weights $\exp(-\frac12((\Delta - \mu) / s)^2)$ and holds a share $1 - \rho$ of the
    pairs, one at least; $\overline\Delta$ is its mean margin. $\mu$ and s are running averages of the batches' mean and standard
    deviation, this batch included. The authors' averages start at 0 uncorrected, so that their first steps divide by a tiny s.

    Args:
        pairs: B pairs; `pairs.margin` is $\Delta$, shape [B], in nats; the chosen side's first `noise` decides the draw.
        beta: regularisation strength, at a batch of ordinary margin.
        gain: g, per nat; how much beta grows with the batch's margin. 0 leaves beta as it is.
        drop: $\rho$, the share left out.

    Returns: one loss per pair, shape [B]: 0 for those left out, for the others a multiple such that the mean over B pairs is the
        mean over the part; that mean is log 2 where the policy still equals the reference.

    Example:
        >>> from dpobench.testing import example_pairs
        >>> pairs = example_pairs([2.0, 1.0], [-1.0, 0.0], needs={"noise": 0.5}, statistics={"mean": 1.0, "std": 1.0})
        >>> beta_dpo(pairs)  # the pair of margin 3 is left out: 2 log(1 + e^-0.1)
        tensor([0.0000, 1.2888])
    """
    margin, mean, std = pairs.margin.detach(), pairs.statistics["mean"], pairs.statistics["std"]
    # Rounding alone spreads the margins where the policy still equals the reference.
    log_weight = -((margin - mean) / std.clamp(min=1e-3)).square() / 2
    gumbel = -(-pairs.chosen.extras["noise"][:, 0].log()).log()
    # (1 - 0.8) * 10 is a little less than 2 to a computer.
    size = max(1, int((1 - drop) * len(pairs) + 1e-9))
    share = torch.zeros_like(margin).index_fill(0, (log_weight + gumbel).topk(size).indices, len(pairs) / size)
    batch_beta = (beta * (1 + gain * ((share * margin).mean() - mean))).clamp(min=1e-3)
    return -share * F.logsigmoid(batch_beta * pairs.margin)
