"""Sequence likelihood calibration: a hinge on log-probabilities, plus the likelihood of the chosen answers."""

from dpobench import Objective, Pairs, loss


@loss(
    source="Zhao et al. 2023, arXiv:2305.10425, with the likelihood averaged over tokens",
    beta_grid=(0.1, 0.5, 1.0, 10.0),
    strength="weight",
    grids={"delta": (0.1, 0.5, 1.0, 2.0)},
    bounds={"delta": "[0, inf)"},
    unit="weight",
    reference=False,
)
def slic_hf(pairs: Pairs, *, weight: float = 0.1, delta: float = 1.0) -> Objective:
    r"""Hinge and likelihood: $\max(0, \delta - p_w + p_l)$ and $-\lambda \sum_i p_{w,i} / \sum_i n_{w,i}$ over the global batch.

    What TRL and OAT call SLiC is `hinge`, the hinge on log-ratios without a likelihood.

    Args:
        pairs: B pairs; $p$ is `logp` of each side, shape [B], in nats; `pairs.chosen.length` is $n_w$.
        weight: $\lambda$, of the likelihood relative to the hinge.
        delta: $\delta$, the margin of log-probabilities at which the hinge lets go, nats.

    Returns: one loss per pair, shape [B], and the likelihood as a ratio.

    Example:
        >>> from dpobench.testing import example_pairs
        >>> pairs = example_pairs([2.0], [1.5])
        >>> slic_hf(pairs).each()  # 1 - (-1) + (-1.5) = 0.5, and 0.1 x 1
        tensor([0.6000])
    """
    return Objective((delta - pairs.chosen.logp + pairs.rejected.logp).relu(), (pairs.chosen.nll(weight),))
