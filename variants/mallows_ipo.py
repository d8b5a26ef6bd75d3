"""MallowsPO with the squared link: IPO whose target is farther where the reference is unsure."""

from dpobench import Pairs, PerPair, loss


@loss(
    source="Chen et al. 2024, arXiv:2405.14953, as implemented by the authors, with log-ratios",
    beta_grid=(0.005, 0.01, 0.05, 0.1, 0.5),
    bounds={"dispersion": "(0, inf)"},
    unit="target nat",
    needs=("reference_entropy",),
    gradient="target",
    start=lambda beta: 1 / (4 * beta**2),
)
def mallows_ipo(pairs: Pairs, *, beta: float = 0.01, dispersion: float = 0.29) -> PerPair:
    r"""Squared distance of a weighted margin from a target: $(\hat\phi\Delta - \frac{1}{2\tau})^2$, $\hat\phi = -\phi^*\log\hat H$.

    $\hat H$ is the reference's token entropy as a share of its maximum $\log V$: a mean over tokens, then over the two answers.
    Margins are sums, as in `ipo_sum`. The gradient vanishes at $1 / (2\tau\hat\phi)$ nats.

    Args:
        pairs: B pairs; `pairs.margin` is $\Delta$, shape [B], in nats; extra "reference_entropy", shape [B, T], from 0 to 1.
        beta: the paper's tau; the target of the weighted margin is half its inverse, in nats.
        dispersion: $\phi^*$, a scale fixed per data set, by the authors at 0.29; where $\hat\phi = 1$ the loss is `ipo_sum`.

    Returns: one loss per pair, shape [B]; $1 / (4\tau^2)$ wherever the policy still equals the reference.

    Example:
        >>> from dpobench.testing import example_pairs
        >>> pairs = example_pairs([2.0], [-1.0], needs={"reference_entropy": 0.5})
        >>> mallows_ipo(pairs, beta=0.1, dispersion=1.0)  # log 2 x 3 = 2.0794, target 5: (2.0794 - 5)^2
        tensor([8.5297])
    """
    entropy = (pairs.chosen.mean("reference_entropy") + pairs.rejected.mean("reference_entropy")) / 2
    # A reference that is sure of every token has entropy 0, whose logarithm is infinite.
    weight = -dispersion * entropy.clamp(1e-6, 1.0).log()
    return (weight * pairs.margin - 1 / (2 * beta)).square()
