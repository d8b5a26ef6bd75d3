"""Weighted Preference Optimization with weights above one."""

import torch.nn.functional as F

from dpobench import Pairs, PerPair, loss


@loss(
    source="as implemented by TRL since 0.29, after Zhou et al. 2024, arXiv:2406.11827",
    beta_grid=(0.01, 0.05, 0.1),
    stops_gradient=True,
    needs=("collision",),
)
def wpo_unclamped(pairs: Pairs, *, beta: float = 0.01) -> PerPair:
    r"""DPO times a constant weight: $w_w w_l \cdot (-\log\sigma(\beta\Delta))$.

    $w = \exp\frac1n\sum_t[p_t - \log\sum_v\pi_t(v)^2]$ exceeds 1 for an answer of likelier tokens than the policy would draw. The
    authors clamp the product at 1 (`wpo`).

    Args:
        pairs: B pairs; `pairs.margin` is $\Delta$, shape [B], in nats; `collision` is the logarithm of the sum over v.
        beta: regularisation strength.

    Returns: one loss per pair, shape [B]; log 2 times the pair's weight where the policy still equals the reference.

    Example:
        >>> from dpobench.testing import example_pairs
        >>> pairs = example_pairs([2.0], [1.0], needs={"collision": -2.0})
        >>> wpo_unclamped(pairs, beta=0.1)  # weight e^(1 + 0): e log(1 + e^-0.1)
        tensor([1.7517])
    """
    chosen, rejected = (side.mean_logp - side.mean("collision") for side in (pairs.chosen, pairs.rejected))
    return (chosen + rejected).detach().exp() * -F.logsigmoid(beta * pairs.margin)
