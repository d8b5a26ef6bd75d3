"""Self-Play Preference Optimization with a win probability for every pair."""

from dpobench import Pairs, PerPair, loss


@loss(
    source="Wu et al. 2024, arXiv:2405.00675, eq. 4.7, halved as implemented by the authors",
    beta_grid=(0.001, 0.01),
    unit="target nat",
    gradient="free",
    columns={"win_probability": "[0, 1]"},
)
def sppo_soft(pairs: Pairs, *, beta: float = 0.001) -> PerPair:
    r"""Half the squared distances: $\frac12[(a - \frac{P - 1/2}{\beta})^2 + (b + \frac{P - 1/2}{\beta})^2]$.

    P is the probability that the chosen answer wins, 1 - P that the rejected one does. The factor 1/2 is the authors';
    `sppo_hard` is without it, so that P = 1 gives half of it. A pair with P below 1/2 is treated as if flipped.

    Args:
        pairs: B pairs; log-ratios a of the chosen and b of the rejected, shape [B], in nats; the column `win_probability`.
        beta: inverse of the paper's eta; for P = 1 the targets are half its inverse, in nats.

    Returns: one loss per pair, shape [B]; $(P - \frac12)^2 / \beta^2$ wherever the policy still equals the reference.

    Example:
        >>> from dpobench.testing import example_pairs
        >>> pairs = example_pairs([2.0], [-1.0], columns={"win_probability": [0.75]})
        >>> sppo_soft(pairs, beta=0.125)  # targets 2 and -2: (0 + 1) / 2
        tensor([0.5000])
    """
    target = (pairs.columns["win_probability"] - 0.5) / beta
    return ((pairs.chosen.logratio - target).square() + (pairs.rejected.logratio + target).square()) / 2
