"""MallowsPO with the logistic link: DPO with a smaller gradient where the reference is unsure."""

import math

import torch.nn.functional as F

from dpobench import Pairs, PerPair, loss


@loss(
    source="Chen et al. 2024, arXiv:2405.14953, as implemented by the authors, with log-ratios",
    beta_grid=(0.01, 0.05, 0.1, 0.3, 0.5),
    bounds={"dispersion": "(0, inf)"},
    needs=("reference_entropy",),
    start=math.log(2),
)
def mallows_dpo(pairs: Pairs, *, beta: float = 0.1, dispersion: float = 0.29) -> PerPair:
    r"""Logistic loss on a margin weighted per prompt: $-\log\sigma(\beta\hat\phi\Delta)$, $\hat\phi = -\phi^*\log\hat H$.

    $\hat H$ is the reference's token entropy as a share of its maximum $\log V$: a mean over tokens, then over the two answers. The
    authors' trainer defaults to per-token means without a reference and a beta of 10; this is its form on summed log-ratios.

    Args:
        pairs: B pairs; `pairs.margin` is $\Delta$, shape [B], in nats; extra "reference_entropy", shape [B, T], from 0 to 1.
        beta: regularisation strength.
        dispersion: $\phi^*$, a scale fixed per data set, by the authors at 0.29; where $\hat\phi = 1$ the loss is DPO.

    Returns: one loss per pair, shape [B]; log 2 wherever the policy still equals the reference.

    Example:
        >>> from dpobench.testing import example_pairs
        >>> pairs = example_pairs([2.0], [-1.0], needs={"reference_entropy": 0.5})
        >>> mallows_dpo(pairs, dispersion=1.0)  # log 2 x 3 = 2.0794: log(1 + e^-0.2079)
        tensor([0.5946])
    """
    entropy = (pairs.chosen.mean("reference_entropy") + pairs.rejected.mean("reference_entropy")) / 2
    # A reference that is sure of every token has entropy 0, whose logarithm is infinite.
    weight = -dispersion * entropy.clamp(1e-6, 1.0).log()
    return -F.logsigmoid(beta * weight * pairs.margin)
