"""SamPO: DPO on equally many tokens of both answers, drawn at random."""

import math

import torch
import torch.nn.functional as F

from dpobench import Pairs, PerPair, Side, loss


@loss(
    source="Lu et al. 2024, arXiv:2406.10957, with one draw for policy and reference",
    beta_grid=(0.01, 0.05, 0.1, 0.3, 0.5),
    needs=("noise",),
    start=math.log(2),
)
def sampo(pairs: Pairs, *, beta: float = 0.1) -> PerPair:
    r"""DPO on log-ratios summed over $m = \min(n_w, n_l)$ tokens $K$ of each answer: $-\log\sigma(\beta(\sum_{K_w} a_t - \sum_{K_l} a_t))$.

    The m tokens with the largest noise are taken, so of the shorter answer all. Policy and reference share the draw, which
    keeps a log-ratio; the authors' code draws for each anew, so that it depends on tokens' log-probabilities where nothing was
    learned.

    Args:
        pairs: B pairs; $a_t$ is policy minus reference at token t, in nats; the extra `noise` is uniform in (0, 1).
        beta: regularisation strength.

    Returns: one loss per pair, shape [B]; log 2 wherever the policy still equals the reference.

    Example:
        >>> from dpobench.testing import example_pairs
        >>> pairs = example_pairs([2.0], [-1.0], tokens=(2, 1), needs={"noise": 0.5})
        >>> sampo(pairs, beta=0.1)  # one token of each, 1 and -1: log(1 + e^-0.2)
        tensor([0.5981])
    """
    count = torch.minimum(pairs.chosen.length, pairs.rejected.length)[:, None]
    chosen, rejected = (_sampled(side, count) for side in (pairs.chosen, pairs.rejected))
    return -F.logsigmoid(beta * (chosen - rejected))


def _sampled(side: Side, count: torch.Tensor) -> PerPair:
    noise = torch.where(side.mask, side.extras["noise"], -1.0)
    rank = noise.argsort(dim=-1, descending=True, stable=True).argsort(-1)
    return torch.where(rank < count, side.policy - side.reference, 0.0).sum(-1)
