"""DPO without a reference."""

import torch.nn.functional as F

from dpobench import Pairs, PerPair, loss


@loss(
    source="Rafailov et al. 2023, arXiv:2305.18290, with reference_free as implemented by the authors",
    beta_grid=(0.01, 0.05, 0.1, 0.3, 0.5),
    reference=False,
)
def dpo_ref_free(pairs: Pairs, *, beta: float = 0.1) -> PerPair:
    r"""Logistic loss on the difference of log-probabilities: $-\log\sigma(\beta(p_w - p_l))$.

    `dpo` with a reference that finds all answers equally likely; the logistic part of CPO. Sums favour short answers: at the start
    the longer of two usually has the lower log-probability.

    Args:
        pairs: B pairs; $p$ is the answer's log-probability under the policy, shape [B], in nats.
        beta: sharpness of the loss, per nat of summed log-probability; nothing holds the policy to a reference.

    Returns: one loss per pair, shape [B]; $-\log\sigma(\beta(r_w - r_l))$ at policy = reference, which is no fixed value.

    Example:
        >>> from dpobench.testing import example_pairs
        >>> pairs = example_pairs([2.0], [1.0], tokens=(1, 2))
        >>> dpo_ref_free(pairs, beta=0.1)  # log-probabilities -1 and -5: log(1 + e^-0.4)
        tensor([0.5130])
    """
    return -F.logsigmoid(beta * (pairs.chosen.logp - pairs.rejected.logp))
