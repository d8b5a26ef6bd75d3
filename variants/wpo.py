"""Weighted Preference Optimization: pairs that the policy might have written itself count more."""

import torch.nn.functional as F

from dpobench import Pairs, PerPair, loss


@loss(
    source="Zhou et al. 2024, arXiv:2406.11827, as implemented by the authors",
    beta_grid=(0.01, 0.05, 0.1),
    stops_gradient=True,
    needs=("collision",),
)
def wpo(pairs: Pairs, *, beta: float = 0.01) -> PerPair:
    r"""DPO times a constant weight: $\min(1, w_w w_l) \cdot (-\log\sigma(\beta\Delta))$.

    $w = \exp\frac1n\sum_t[p_t - \log\sum_v\pi_t(v)^2]$: how likely the answer's tokens are, relative to tokens drawn from the policy.
    `wpo_unclamped` leaves the product as it is.

    Args:
        pairs: B pairs; `pairs.margin` is $\Delta$, shape [B], in nats; `collision` is the logarithm of the sum over v.
        beta: regularisation strength.

    Returns: one loss per pair, shape [B]; log 2 times the pair's weight where the policy still equals the reference.

    Example:
        >>> from dpobench.testing import example_pairs
        >>> pairs = example_pairs([2.0], [1.0], needs={"collision": -1.0})
        >>> wpo(pairs, beta=0.1)  # weight e^(0 - 1): e^-1 log(1 + e^-0.1)
        tensor([0.2371])
    """
    chosen, rejected = (side.mean_logp - side.mean("collision") for side in (pairs.chosen, pairs.rejected))
    return (chosen + rejected).detach().clamp(max=0).exp() * -F.logsigmoid(beta * pairs.margin)
