"""Odds Ratio Preference Optimization, with the likelihood as a mean of each answer."""

import torch.nn.functional as F

from dpobench import Pairs, PerPair, Side, loss


def log_odds(side: Side) -> PerPair:
    """Log-odds of the mean token probability, shape [B]; finite where that is one: the answer certain in every token."""
    certain = side.mean_logp.clamp(max=-1e-7)
    return side.mean_logp - (-certain.expm1()).log()


@loss(
    source="Hong et al. 2024, arXiv:2403.07691, with the likelihood averaged per answer as implemented by LLaMA-Factory",
    beta_grid=(0.1, 0.2, 0.5, 1.0),
    strength="weight",
    unit="weight",
    reference=False,
)
def orpo_seq(pairs: Pairs, *, weight: float = 0.1) -> PerPair:
    r"""Likelihood and log odds ratio: $-\bar p_w - \lambda\log\sigma(o_w - o_l)$, $o = \bar p - \log(1 - e^{\bar p})$.

    Every answer counts alike, whatever its length; in `orpo` every token does.

    Args:
        pairs: B pairs; $\bar p$ is `mean_logp` of each side, shape [B], in nats per token.
        weight: $\lambda$, of the odds ratio relative to the likelihood.

    Returns: one loss per pair, shape [B].

    Example:
        >>> from dpobench.testing import example_pairs
        >>> pairs = example_pairs([2.0], [1.0])
        >>> orpo_seq(pairs)  # log-odds -0.5413 and -1.8546: 1 + 0.1 log(1 + e^-1.3133)
        tensor([1.0238])
    """
    return -pairs.chosen.mean_logp - weight * F.logsigmoid(log_odds(pairs.chosen) - log_odds(pairs.rejected))
