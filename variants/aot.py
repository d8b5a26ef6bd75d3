"""Alignment via Optimal Transport on paired data."""

import math

import torch.nn.functional as F

from dpobench import Pairs, PerPair, loss


@loss(
    source="Melnyk et al. 2024, arXiv:2406.05882, paired, as implemented by TRL",
    beta_grid=(0.01, 0.1),
    bounds={"flip": "[0, 0.5)"},
    gradient="free",
    couples_batch=True,
    start=math.log(2),
)
def aot(pairs: Pairs, *, beta: float = 0.01, flip: float = 0.0) -> PerPair:
    r"""Compares sorted log-probability margins: $\ell(\beta[\mathrm{sort}(p_w - p_l) - \mathrm{sort}(r_w - r_l)])$.

    $\ell(z) = -(1-\epsilon)\log\sigma(z) - \epsilon\log\sigma(-z)$. The whole batch is sorted; trainers sort what is on a device. TRL
    called `aot_unpaired` "aot_pair" until it renamed both. With a flip of 0 no chosen answer is pushed down and no rejected one up;
    with any other the gradient changes sign, as in `cdpo`.

    Args:
        pairs: B pairs; margins of summed log-probabilities under policy p and reference r, shape [B], in nats.
        beta: regularisation strength.
        flip: $\epsilon$, the share of labels taken to be flipped.

    Returns: one loss per pair, shape [B], the policy's margin against the reference's of the same rank; log 2 wherever the
        policy still equals the reference.

    Example:
        >>> from dpobench.testing import example_pairs
        >>> pairs = example_pairs([1.0, 3.0], [0.0, 0.0])
        >>> aot(pairs, beta=0.1)  # the reference's margins are all 0: log(1 + e^-0.1), log(1 + e^-0.3)
        tensor([0.6444, 0.5544])
    """
    policy = pairs.chosen.logp - pairs.rejected.logp
    reference = pairs.chosen.reference_logp - pairs.rejected.reference_logp
    logits = beta * (policy - reference.sort().values[policy.argsort().argsort()])
    return -(1 - flip) * F.logsigmoid(logits) - flip * F.logsigmoid(-logits)
