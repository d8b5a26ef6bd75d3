"""Self-Play Preference Optimization with certain preferences."""

from dpobench import Pairs, PerPair, loss


@loss(
    source="Wu et al. 2024, arXiv:2405.00675, eq. 4.7, with win probabilities of 1 and 0 as implemented by TRL and Liger",
    beta_grid=(0.001, 0.01),
    unit="target nat",
    gradient="target",
    start=lambda beta: 1 / (2 * beta**2),
)
def sppo_hard(pairs: Pairs, *, beta: float = 0.001) -> PerPair:
    r"""Squared distance of either log-ratio from its target: $(a - \frac{1}{2\beta})^2 + (b + \frac{1}{2\beta})^2$.

    Not halved; the authors' code halves it. The factor matters in mixtures and under gradient clipping only. `sppo_soft` takes win
    probabilities and is halved. The gradient at the start is $1/\beta$ on either side: it is clipped at every step.

    Args:
        pairs: B pairs; log-ratios a of the chosen and b of the rejected, shape [B], in nats.
        beta: inverse of the paper's eta; the targets are half its inverse, in nats, up for the chosen, down for the rejected.

    Returns: one loss per pair, shape [B]; $1 / (2\beta^2)$ wherever the policy still equals the reference.

    Example:
        >>> from dpobench.testing import example_pairs
        >>> pairs = example_pairs([2.0], [-1.0])
        >>> sppo_hard(pairs, beta=0.25)  # targets 2 and -2: 0 + 1
        tensor([1.])
    """
    target = 1 / (2 * beta)
    return (pairs.chosen.logratio - target).square() + (pairs.rejected.logratio + target).square()
