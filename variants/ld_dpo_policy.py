"""Length-desensitized DPO with the weights on the policy only."""

import torch
import torch.nn.functional as F

from dpobench import Pairs, PerPair, Side, loss


@loss(
    source="Liu et al. 2024, arXiv:2409.06411, with weights on the policy only as implemented by LLaMA-Factory",
    beta_grid=(0.01, 0.05, 0.1, 0.3, 0.5),
    grids={"alpha": (0.1, 0.3, 0.5, 0.7)},
    bounds={"alpha": "[0, 1]"},
)
def ld_dpo_policy(pairs: Pairs, *, beta: float = 0.1, alpha: float = 0.5) -> PerPair:
    r"""DPO with less of the policy's tail: $-\log\sigma(\beta(P_w - r_w - P_l + r_l))$, $P = \sum_{t \le m} p_t + \alpha\sum_{t > m} p_t$.

    With $m = \min(n_w, n_l)$. The reference is summed unweighted, so this is no function of log-ratios: a longer answer starts with
    a bonus of $1-\alpha$ times the negative log-probability of its tail. The reading that weighs both is `ld_dpo`.

    Args:
        pairs: B pairs; $p_t$ is the policy's log-probability of token t and $r$ the reference's of the answer, in nats.
        beta: regularisation strength.
        alpha: $\alpha$, weight of the policy's tokens beyond the shorter answer's length; 1 is DPO.

    Returns: one loss per pair, shape [B]; wherever the policy still equals the reference, log 2 for answers of equal length, and
        $-\log\sigma(\pm\beta(1-\alpha)R)$ otherwise, with R the negative log-probability of the tail and + if the chosen answer is
        the longer one.

    Example:
        >>> from dpobench.testing import example_pairs
        >>> pairs = example_pairs([0.0], [0.0], tokens=(2, 1))
        >>> ld_dpo_policy(pairs, alpha=0.5)  # -3 - 0.5 x 3 + 6 = 1.5 and 0: log(1 + e^-0.15)
        tensor([0.6210])
    """
    shared = torch.minimum(pairs.chosen.length, pairs.rejected.length)[:, None]
    chosen, rejected = (_weighted(side, shared, alpha) for side in (pairs.chosen, pairs.rejected))
    return -F.logsigmoid(beta * (chosen - rejected))


def _weighted(side: Side, shared: torch.Tensor, alpha: float) -> PerPair:
    policy = torch.where(side.mask.cumsum(-1) <= shared, side.policy, alpha * side.policy)
    return torch.where(side.mask, policy - side.reference, 0.0).sum(-1)
