"""Losses of other papers, written as a user would: none of them may be refused."""

import math

import torch
import torch.nn.functional as F

from dpobench import Pairs, PerPair, loss

GRID = (0.05, 0.1, 0.5)


@loss(source="arXiv:2309.06657", beta_grid=GRID, start=1.0)
def hinge(pairs: Pairs, *, beta: float = 0.1) -> PerPair:
    """Hinge on the margin."""
    return torch.relu(1 - beta * pairs.margin)


@loss(source="arXiv:2403.00409", beta_grid=GRID, bounds={"flip": "[0, 0.5)"}, start=math.log(2))
def rdpo(pairs: Pairs, *, beta: float = 0.1, flip: float = 0.1) -> PerPair:
    """Robust DPO: unbiased under flips."""
    logits = beta * pairs.margin
    return (-(1 - flip) * F.logsigmoid(logits) + flip * F.logsigmoid(-logits)) / (1 - 2 * flip)


@loss(source="arXiv:2402.00856, eq. 16", beta_grid=(0.1, 0.5), gradient="target")
def exo(pairs: Pairs, *, beta: float = 0.1, flip: float = 1e-3) -> PerPair:
    """Reverse KL between two Bernoulli distributions."""
    z = beta * pairs.margin
    wrong = F.logsigmoid(-z) - math.log(flip)
    return z.sigmoid() * (F.logsigmoid(z) - math.log(1 - flip)) + (-z).sigmoid() * wrong


@loss(source="arXiv:2406.08414, eq. 5", beta_grid=(0.05, 0.1), gradient="free", grids={"tau": (0.05, 0.1)})
def discopop(pairs: Pairs, *, beta: float = 0.05, tau: float = 0.05) -> PerPair:
    """Discovered loss; not monotone."""
    z = beta * pairs.margin
    return -(-z / tau).sigmoid() * F.logsigmoid(z) + (F.logsigmoid(z / tau) - z).exp()


@loss(source="arXiv:2411.15124, eq. 6", beta_grid=(2.0, 5.0, 10.0), unit="nat per token", start=math.log(2))
def dpo_norm(pairs: Pairs, *, beta: float = 5.0) -> PerPair:
    """DPO on means."""
    return -F.logsigmoid(beta * pairs.mean_margin)


@loss(source="arXiv:2403.19159, eq. 9", beta_grid=GRID, grids={"alpha": (0.005, 0.05)})
def r_dpo(pairs: Pairs, *, beta: float = 0.1, alpha: float = 0.05) -> PerPair:
    """DPO with a length term: where it starts depends on the lengths, so no start is declared."""
    return -F.logsigmoid(beta * pairs.margin + alpha * (pairs.chosen.length - pairs.rejected.length))


@loss(source="arXiv:2402.05369", beta_grid=(0.01, 0.1), gradient="target", start=2 * math.log(2))
def nca(pairs: Pairs, *, beta: float = 0.1) -> PerPair:
    """Absolute: the chosen has a target of its own."""
    a, b = beta * pairs.chosen.logratio, beta * pairs.rejected.logratio
    return -F.logsigmoid(a) - 0.5 * F.logsigmoid(-a) - 0.5 * F.logsigmoid(-b)


@loss(
    source="arXiv:2405.00675",
    beta_grid=(1e-3, 1e-2),
    unit="target nat",
    gradient="target",
    start=lambda beta: 0.5 / beta**2,
)
def sppo(pairs: Pairs, *, beta: float = 1e-3) -> PerPair:
    """Squared distance of each side to its own target."""
    return (pairs.chosen.logratio - 0.5 / beta).square() + (pairs.rejected.logratio + 0.5 / beta).square()


@loss(source="arXiv:2402.13228, eq. 3", beta_grid=(0.1, 0.3), grids={"penalty": (5.0, 50.0)}, start=math.log(2))
def dpop(pairs: Pairs, *, beta: float = 0.3, penalty: float = 50.0) -> PerPair:
    """DPO that punishes a falling chosen answer."""
    return -F.logsigmoid(beta * (pairs.margin - penalty * torch.relu(-pairs.chosen.logratio)))


@loss(source="arXiv:2408.06266", beta_grid=(0.05, 0.1), gradient="free", start=1.0)
def apo_down(pairs: Pairs, *, beta: float = 0.1) -> PerPair:
    """Pushes both answers down."""
    return (beta * pairs.chosen.logratio).sigmoid() + (-beta * pairs.margin).sigmoid()


@loss(
    source="arXiv:2405.14734",
    beta_grid=(2.0, 10.0),
    unit="nat per token",
    reference=False,
    grids={"gamma_ratio": (0.0, 0.5)},
)
def simpo(pairs: Pairs, *, beta: float = 2.0, gamma_ratio: float = 0.5) -> PerPair:
    """No reference, mean log-probabilities, a margin to keep."""
    return -F.logsigmoid(beta * (pairs.chosen.mean_logp - pairs.rejected.mean_logp - gamma_ratio))


@loss(source="arXiv:2406.11827, authors' code without the vocabulary term", beta_grid=(0.01, 0.1), gradient="free")
def weighted(pairs: Pairs, *, beta: float = 0.1) -> PerPair:
    """Detached weights, as the method prescribes."""
    weight = (pairs.chosen.mean_logp + pairs.rejected.mean_logp).exp().detach()
    return -weight * F.logsigmoid(beta * pairs.margin)


@loss(source="arXiv:2409.06411", beta_grid=GRID, grids={"alpha": (0.3, 0.7)}, start=math.log(2))
def ld_dpo(pairs: Pairs, *, beta: float = 0.1, alpha: float = 0.5) -> PerPair:
    """Tokens beyond the shorter answer count less."""
    shorter = torch.minimum(pairs.chosen.length, pairs.rejected.length)[:, None]
    total = []
    for side in (pairs.chosen, pairs.rejected):
        ratio = torch.where(side.mask, side.policy - side.reference, 0.0)
        weight = torch.where(side.mask.cumsum(-1) <= shorter, 1.0, alpha).to(ratio.dtype)
        total.append((weight * ratio).sum(-1))
    return -F.logsigmoid(beta * (total[0] - total[1]))


@loss(source="arXiv:2407.07880", beta_grid=GRID, grids={"robust": (0.5, 1.0)}, couples_batch=True, start=math.log(2))
def dr_dpo(pairs: Pairs, *, beta: float = 0.1, robust: float = 1.0) -> PerPair:
    """Pairs with a small loss weigh more: one value of the batch, for every pair."""
    losses = -F.logsigmoid(beta * pairs.margin)
    mean = torch.logsumexp(-losses / robust, 0) - math.log(len(pairs))
    return (-robust * mean).expand(len(pairs))


@loss(source="arXiv:2406.05882", beta_grid=(0.01, 0.1), couples_batch=True, start=math.log(2))
def aot_unpaired(pairs: Pairs, *, beta: float = 0.1) -> PerPair:
    """Compares sorted chosen with sorted rejected log-ratios."""
    return -F.logsigmoid(beta * (pairs.chosen.logratio.sort().values - pairs.rejected.logratio.sort().values))
