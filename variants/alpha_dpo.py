"""Alpha-DPO: SimPO with a target margin that grows with the pair's log-ratio margin."""

import torch.nn.functional as F
from torch import Tensor

from dpobench import Pairs, PerPair, loss


def init() -> dict[str, float]:
    """No batch yet; a spread of one nat a token stands in until a batch has two pairs."""
    return {"mean": 0.0, "std": 1.0, "count": 0.0}


def update(pairs: Pairs, statistics: dict[str, float]) -> dict[str, Tensor | float]:
    """Mean and spread of the mean margin over batches, each step forgetting a tenth; unbiased from the first batch on."""
    count = statistics["count"] + 1
    new = (1 - 0.9) / (1 - 0.9**count)
    std = pairs.mean_margin.std() if len(pairs) > 1 else statistics["std"]
    return {
        "mean": (1 - new) * statistics["mean"] + new * pairs.mean_margin.mean(),
        "std": (1 - new) * statistics["std"] + new * std,
        "count": count,
    }


@loss(
    source="Wu et al. 2024, arXiv:2410.10148, as implemented by the authors, with averages corrected for their start",
    beta_grid=(2.5, 10.0),
    unit="nat per token",
    grids={"gamma_ratio": (0.15, 0.4, 0.6), "alpha": (0.05, 0.2)},
    bounds={"gamma_ratio": "[0, inf)", "alpha": "[0, inf)"},
    stops_gradient=True,
    running=(init, update),
)
def alpha_dpo(pairs: Pairs, *, beta: float = 2.5, gamma_ratio: float = 0.6, alpha: float = 0.2) -> PerPair:
    r"""Length-normalised margin against a target that moves: $-\log\sigma(\beta[\bar p_w - \bar p_l - \hat\gamma - \alpha z])$.

    $z = (\bar\Delta - \mu) / s$ is held constant and is all that the reference enters by. $\mu$ and s are running averages of the
    batches' mean and standard deviation of $\bar\Delta$, this batch included. The authors' averages start at 0 uncorrected, so
    that their first steps divide by a tiny s.

    Args:
        pairs: B pairs; mean log-probabilities $\bar p$ and `pairs.mean_margin` $\bar\Delta$, shape [B], in nats per token.
        beta: how sharply the margin is judged; nothing holds the policy to the reference.
        gamma_ratio: $\hat\gamma$, the margin required of an ordinary pair, nats per token.
        alpha: nats per token by which the target rises with each standard deviation of $\bar\Delta$; 0 is SimPO.

    Returns: one loss per pair, shape [B]; no fixed value where the policy equals the reference.

    Example:
        >>> from dpobench.testing import example_pairs
        >>> pairs = example_pairs([2.0], [-1.0], tokens=(2, 1), statistics={"mean": 0.0, "std": 1.0})
        >>> alpha_dpo(pairs)  # z = 2; beta (2 - 0.6 - 0.2 z) = 2.5: log(1 + e^-2.5)
        tensor([0.0789])
    """
    mean, std = pairs.statistics["mean"], pairs.statistics["std"]
    # Rounding alone spreads the margins where the policy still equals the reference.
    unusual = (pairs.mean_margin.detach() - mean) / std.clamp(min=1e-3)
    return -F.logsigmoid(beta * (pairs.chosen.mean_logp - pairs.rejected.mean_logp - gamma_ratio - alpha * unusual))
