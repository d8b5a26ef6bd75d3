"""Hinge loss on the margin, as in statistical rejection sampling optimization (RSO)."""

import torch

from dpobench import Pairs, PerPair, loss


@loss(
    source="Liu et al. 2023, arXiv:2309.06657 (hinge-norm)",
    beta_grid=(0.01, 0.05, 0.1, 0.5),
    start=1.0,
)
def hinge(pairs: Pairs, *, beta: float = 0.05) -> PerPair:
    r"""Hinge at a margin of one over beta: $\max(0, 1 - \beta\Delta)$.

    A pair past that margin has no gradient at all. TRL and OAT call this loss "SLiC"; SLiC-HF proper has no reference and a
    likelihood term added to the hinge.

    Args:
        pairs: B pairs; `pairs.margin` is $\Delta$, shape [B], in nats.
        beta: the inverse of the margin, in nats, at which the gradient ends.

    Returns: one loss per pair, shape [B]; 1 wherever the policy still equals the reference.

    Example:
        >>> from dpobench.testing import example_pairs
        >>> pairs = example_pairs([2.0], [-1.0])
        >>> hinge(pairs, beta=0.1)  # 1 - 0.1 x 3
        tensor([0.7000])
    """
    return torch.relu(1 - beta * pairs.margin)
