"""Alignment via Optimal Transport where chosen and rejected answers need not belong together."""

import math

import torch.nn.functional as F

from dpobench import Pairs, PerPair, loss


@loss(
    source="Melnyk et al. 2024, arXiv:2406.05882, unpaired, as implemented by TRL",
    beta_grid=(0.01, 0.1),
    bounds={"flip": "[0, 0.5)"},
    gradient="free",
    couples_batch=True,
    start=math.log(2),
)
def aot_unpaired(pairs: Pairs, *, beta: float = 0.01, flip: float = 0.0) -> PerPair:
    r"""Compares the sorted log-ratios of chosen and rejected answers: $\ell(\beta[\mathrm{sort}(a) - \mathrm{sort}(b)])$.

    $\ell(z) = -(1-\epsilon)\log\sigma(z) - \epsilon\log\sigma(-z)$. The whole batch is sorted; trainers sort what is on a device. Which
    rejected answer belongs to which chosen one has no effect. With a flip of 0 no chosen answer is pushed down and no rejected one
    up; with any other the gradient changes sign, as in `cdpo`.

    Args:
        pairs: B pairs; log-ratios a of the chosen and b of the rejected, shape [B], in nats.
        beta: regularisation strength.
        flip: $\epsilon$, the share of labels taken to be flipped.

    Returns: one loss per pair, shape [B], each chosen answer against the rejected one of the same rank; log 2 wherever the
        policy still equals the reference.

    Example:
        >>> from dpobench.testing import example_pairs
        >>> pairs = example_pairs([1.0, 3.0], [0.0, -2.0])
        >>> aot_unpaired(pairs, beta=0.1)  # 1 meets -2, and 3 meets 0: log(1 + e^-0.3) twice
        tensor([0.5544, 0.5544])
    """
    chosen, rejected = pairs.chosen.logratio, pairs.rejected.logratio
    logits = beta * (chosen - rejected.sort().values[chosen.argsort().argsort()])
    return -(1 - flip) * F.logsigmoid(logits) - flip * F.logsigmoid(-logits)
