"""DPO with an offset: the better the chosen answer was scored, the larger the required margin."""

import torch.nn.functional as F

from dpobench import Pairs, PerPair, loss


@loss(
    source="Amini et al. 2024, arXiv:2402.10571",
    beta_grid=(0.05, 0.1, 0.3, 0.7),
    columns={"score_chosen": "(-inf, inf)", "score_rejected": "(-inf, inf)"},
    grids={"alpha": (0.5, 1.0)},
    bounds={"alpha": "[0, inf)", "smallest_gap": "(0, inf)"},
)
def odpo(pairs: Pairs, *, beta: float = 0.1, alpha: float = 1.0, smallest_gap: float = 1e-3) -> PerPair:
    r"""Logistic loss with an offset: $-\log\sigma(\beta\Delta - \alpha\log(s_w - s_l))$.

    A gap below `smallest_gap`, also one of the wrong sign, counts as that gap: the pair asks for next to nothing. The authors'
    code can take the ratio of the scores in the place of their difference; this is the difference.

    Args:
        pairs: B pairs; `pairs.margin` is $\Delta$, shape [B], in nats; the columns `score_chosen` and `score_rejected` hold
            $s_w$ and $s_l$, shape [B], in the units of whatever scored the answers.
        beta: regularisation strength.
        alpha: weight of the offset; 0 is DPO.
        smallest_gap: floor of $s_w - s_l$, in the units of the scores.

    Returns: one loss per pair, shape [B]; $\log(1 + (s_w - s_l)^\alpha)$, log 2 at a gap of 1, wherever the policy still equals the
        reference.

    Example:
        >>> from dpobench.testing import example_pairs
        >>> pairs = example_pairs([2.0], [-1.0], columns={"score_chosen": [3.0], "score_rejected": [1.0]})
        >>> odpo(pairs)  # 0.3 - log 2: log(1 + 2 e^-0.3)
        tensor([0.9089])
    """
    gap = (pairs.columns["score_chosen"] - pairs.columns["score_rejected"]).clamp(min=smallest_gap)
    return -F.logsigmoid(beta * pairs.margin - alpha * gap.log())
