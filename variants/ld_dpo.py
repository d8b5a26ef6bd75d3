"""Length-desensitized DPO: the tail by which one answer is longer counts less."""

import math

import torch
import torch.nn.functional as F

from dpobench import Pairs, PerPair, Side, loss


@loss(
    source="Liu et al. 2024, arXiv:2409.06411, with weights on policy and reference as implemented by TRL from 0.29",
    beta_grid=(0.01, 0.05, 0.1, 0.3, 0.5),
    grids={"alpha": (0.1, 0.3, 0.5, 0.7)},
    bounds={"alpha": "[0, 1]"},
    start=math.log(2),
)
def ld_dpo(pairs: Pairs, *, beta: float = 0.1, alpha: float = 0.5) -> PerPair:
    r"""DPO on log-ratios $A = \sum_{t \le m} a_t + \alpha\sum_{t > m} a_t$ with $m = \min(n_w, n_l)$: $-\log\sigma(\beta(A_w - A_l))$.

    The weights lie on the log-ratio, that is on policy and reference alike. Older TRL, LLaMA-Factory and ms-swift weigh the policy
    alone, which leaves no log-ratio: `ld_dpo_policy`.

    Args:
        pairs: B pairs; $a_t$ is policy minus reference at token t, in nats.
        beta: regularisation strength.
        alpha: $\alpha$, weight of the tokens beyond the shorter answer's length; 1 is DPO.

    Returns: one loss per pair, shape [B]; log 2 wherever the policy still equals the reference.

    Example:
        >>> from dpobench.testing import example_pairs
        >>> pairs = example_pairs([2.0], [-1.0], tokens=(2, 1))
        >>> ld_dpo(pairs, alpha=0.5)  # 1 + 0.5 x 1 and -1: log(1 + e^-0.25)
        tensor([0.5759])
    """
    shared = torch.minimum(pairs.chosen.length, pairs.rejected.length)[:, None]
    chosen, rejected = (_weighted(side, shared, alpha) for side in (pairs.chosen, pairs.rejected))
    return -F.logsigmoid(beta * (chosen - rejected))


def _weighted(side: Side, shared: torch.Tensor, alpha: float) -> PerPair:
    logratio = side.policy - side.reference
    weighted = torch.where(side.mask.cumsum(-1) <= shared, logratio, alpha * logratio)
    return torch.where(side.mask, weighted, 0.0).sum(-1)
