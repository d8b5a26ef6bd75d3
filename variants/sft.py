"""Supervised fine-tuning on the chosen answers: what a preference loss has to beat."""

import torch

from dpobench import Objective, Pairs, loss


@loss(
    source="maximum likelihood over response tokens, as implemented by TRL (loss type sft)",
    beta_grid=(1.0,),
    strength="weight",
    unit="weight",
    reference=False,
    baseline=True,
)
def sft(pairs: Pairs, *, weight: float = 1.0) -> Objective:
    r"""Negative log-likelihood of the chosen answers: $-w \sum_i p_{w,i} / \sum_i n_{w,i}$ over the global batch.

    The rejected answers are not used. Alone, under Adam, the weight changes nothing but which steps are clipped; it matters
    in a mixture.

    Args:
        pairs: B pairs; `pairs.chosen.logp` is $p_w$, shape [B], in nats, `pairs.chosen.length` $n_w$.
        weight: $w$, a factor of the whole.

    Returns: zero per pair, shape [B], and the likelihood as a ratio.

    Example:
        >>> from dpobench.testing import example_pairs
        >>> pairs = example_pairs([1.0], [0.0], tokens=(2, 1))
        >>> sft(pairs).each()  # 5 nats on 2 tokens
        tensor([2.5000])
    """
    return Objective(torch.zeros_like(pairs.chosen.logp), (pairs.chosen.nll(weight),))
