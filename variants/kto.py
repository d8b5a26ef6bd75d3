"""Kahneman-Tversky Optimization: each answer is judged against a reference point, not against its rival."""

from dpobench import Pairs, PerPair, loss


@loss(
    source="Ethayarajh et al. 2024, arXiv:2402.01306, as implemented by TRL, Liger and HALOs",
    beta_grid=(0.01, 0.05, 0.1, 0.5),
    grids={"desirable_weight": (1.0, 1.33), "undesirable_weight": (1.0, 1.33)},
    bounds={"desirable_weight": "(0, inf)", "undesirable_weight": "(0, inf)"},
    couples_batch=True,
    needs=("mismatched",),
    start=lambda desirable_weight, undesirable_weight: (desirable_weight + undesirable_weight) / 4,
)
def kto(pairs: Pairs, *, beta: float = 0.1, desirable_weight: float = 1.0, undesirable_weight: float = 1.0) -> PerPair:
    r"""Half of $\lambda_D\,\sigma(-\beta(a - z_0)) + \lambda_U\,\sigma(-\beta(z_0 - b))$, a and b the two log-ratios.

    $z_0$ estimates how far the policy is from the reference: the mean log-ratio of answers to other prompts, over the whole
    batch, and 0 where that is negative. Implementations differ in how they mismatch prompts and answers, and in taking $z_0$ per
    device. The method weighs examples, not pairs: with the half, the mean over pairs is the mean over 2B examples. `kto_pair`
    takes $z_0$ from the other side's answers instead.

    Args:
        pairs: B pairs; log-ratios in nats, of `pairs.mismatched` too, which are constant.
        beta: per nat; how fast an answer's value saturates as its log-ratio leaves $z_0$.
        desirable_weight: $\lambda_D$, weight of the chosen answers.
        undesirable_weight: $\lambda_U$, weight of the rejected answers.

    Returns: one loss per pair, shape [B]; $(\lambda_D + \lambda_U) / 4$ wherever the policy still equals the reference.

    Example:
        >>> from dpobench.testing import example_pairs
        >>> pairs = example_pairs([2.0], [-1.0], needs={"mismatched": 1.0})
        >>> kto(pairs, beta=0.1)  # z_0 = 1: (sigmoid(-0.1) + sigmoid(-0.2)) / 2
        tensor([0.4626])
    """
    anchor = pairs.mismatched.logratio.mean().clamp(min=0)
    desirable = (beta * (anchor - pairs.chosen.logratio)).sigmoid()
    undesirable = (beta * (pairs.rejected.logratio - anchor)).sigmoid()
    return (desirable_weight * desirable + undesirable_weight * undesirable) / 2
