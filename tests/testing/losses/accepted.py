"""Losses of other papers, written as a user would: none of them may be refused."""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from dpobench import Objective, Pairs, PerPair, Ratio, loss

GRID = (0.05, 0.1, 0.5)


@loss(source="arXiv:2309.06657", beta_grid=GRID, start=1.0)
def own_hinge(pairs: Pairs, *, beta: float = 0.1) -> PerPair:
    """Hinge on the margin."""
    return torch.relu(1 - beta * pairs.margin)


@loss(source="arXiv:2403.00409", beta_grid=GRID, bounds={"flip": "[0, 0.5)"}, start=math.log(2))
def own_rdpo(pairs: Pairs, *, beta: float = 0.1, flip: float = 0.1) -> PerPair:
    """Robust DPO: unbiased under flips."""
    logits = beta * pairs.margin
    return (-(1 - flip) * F.logsigmoid(logits) + flip * F.logsigmoid(-logits)) / (1 - 2 * flip)


@loss(source="arXiv:2402.00856, eq. 16", beta_grid=(0.1, 0.5), gradient="target")
def own_exo(pairs: Pairs, *, beta: float = 0.1, flip: float = 1e-3) -> PerPair:
    """Reverse KL between two Bernoulli distributions."""
    z = beta * pairs.margin
    wrong = F.logsigmoid(-z) - math.log(flip)
    return z.sigmoid() * (F.logsigmoid(z) - math.log(1 - flip)) + (-z).sigmoid() * wrong


@loss(source="arXiv:2406.08414, eq. 5", beta_grid=(0.05, 0.1), gradient="free", grids={"tau": (0.05, 0.1)})
def own_discopop(pairs: Pairs, *, beta: float = 0.05, tau: float = 0.05) -> PerPair:
    """Discovered loss; not monotone."""
    z = beta * pairs.margin
    return -(-z / tau).sigmoid() * F.logsigmoid(z) + (F.logsigmoid(z / tau) - z).exp()


@loss(source="arXiv:2411.15124, eq. 6", beta_grid=(2.0, 5.0, 10.0), unit="nat per token", start=math.log(2))
def own_dpo_norm(pairs: Pairs, *, beta: float = 5.0) -> PerPair:
    """DPO on means."""
    return -F.logsigmoid(beta * pairs.mean_margin)


@loss(source="arXiv:2403.19159, eq. 9", beta_grid=GRID, grids={"alpha": (0.005, 0.05)})
def own_r_dpo(pairs: Pairs, *, beta: float = 0.1, alpha: float = 0.05) -> PerPair:
    """DPO with a length term: where it starts depends on the lengths, so no start is declared."""
    return -F.logsigmoid(beta * pairs.margin + alpha * (pairs.chosen.length - pairs.rejected.length))


@loss(source="arXiv:2402.05369", beta_grid=(0.01, 0.1), gradient="target", start=2 * math.log(2))
def own_nca(pairs: Pairs, *, beta: float = 0.1) -> PerPair:
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
def own_sppo(pairs: Pairs, *, beta: float = 1e-3) -> PerPair:
    """Squared distance of each side to its own target."""
    return (pairs.chosen.logratio - 0.5 / beta).square() + (pairs.rejected.logratio + 0.5 / beta).square()


@loss(source="arXiv:2402.13228, eq. 3", beta_grid=(0.1, 0.3), grids={"penalty": (5.0, 50.0)}, start=math.log(2))
def own_dpop(pairs: Pairs, *, beta: float = 0.3, penalty: float = 50.0) -> PerPair:
    """DPO that punishes a falling chosen answer."""
    return -F.logsigmoid(beta * (pairs.margin - penalty * torch.relu(-pairs.chosen.logratio)))


@loss(source="arXiv:2408.06266", beta_grid=(0.05, 0.1), gradient="free", start=1.0)
def own_apo_down(pairs: Pairs, *, beta: float = 0.1) -> PerPair:
    """Pushes both answers down."""
    return (beta * pairs.chosen.logratio).sigmoid() + (-beta * pairs.margin).sigmoid()


@loss(
    source="arXiv:2405.14734",
    beta_grid=(2.0, 10.0),
    unit="nat per token",
    reference=False,
    grids={"gamma_ratio": (0.0, 0.5)},
)
def own_simpo(pairs: Pairs, *, beta: float = 2.0, gamma_ratio: float = 0.5) -> PerPair:
    """No reference, mean log-probabilities, a margin to keep."""
    return -F.logsigmoid(beta * (pairs.chosen.mean_logp - pairs.rejected.mean_logp - gamma_ratio))


@loss(source="arXiv:2406.11827, authors' code without the vocabulary term", beta_grid=(0.01, 0.1), stops_gradient=True)
def own_weighted(pairs: Pairs, *, beta: float = 0.1) -> PerPair:
    """Detached weights, as the method prescribes."""
    weight = (pairs.chosen.mean_logp + pairs.rejected.mean_logp).exp().detach()
    return -weight * F.logsigmoid(beta * pairs.margin)


@loss(source="arXiv:2409.06411", beta_grid=GRID, grids={"alpha": (0.3, 0.7)}, start=math.log(2))
def own_ld_dpo(pairs: Pairs, *, beta: float = 0.1, alpha: float = 0.5) -> PerPair:
    """Tokens beyond the shorter answer count less."""
    shorter = torch.minimum(pairs.chosen.length, pairs.rejected.length)[:, None]
    total = []
    for side in (pairs.chosen, pairs.rejected):
        ratio = torch.where(side.mask, side.policy - side.reference, 0.0)
        weight = torch.where(side.mask.cumsum(-1) <= shorter, 1.0, alpha).to(ratio.dtype)
        total.append((weight * ratio).sum(-1))
    return -F.logsigmoid(beta * (total[0] - total[1]))


@loss(source="arXiv:2407.07880", beta_grid=GRID, grids={"robust": (0.5, 1.0)}, couples_batch=True, start=math.log(2))
def own_dr_dpo(pairs: Pairs, *, beta: float = 0.1, robust: float = 1.0) -> PerPair:
    """Pairs with a small loss weigh more: one value of the batch, for every pair."""
    losses = -F.logsigmoid(beta * pairs.margin)
    mean = torch.logsumexp(-losses / robust, 0) - math.log(len(pairs))
    return (-robust * mean).expand(len(pairs))


@loss(source="arXiv:2406.05882", beta_grid=(0.01, 0.1), couples_batch=True, start=math.log(2))
def own_aot_unpaired(pairs: Pairs, *, beta: float = 0.1) -> PerPair:
    """Compares sorted chosen with sorted rejected log-ratios."""
    return -F.logsigmoid(beta * (pairs.chosen.logratio.sort().values - pairs.rejected.logratio.sort().values))


@loss(
    source="arXiv:2402.10571", beta_grid=GRID, columns={"score_chosen": "(-inf, inf)", "score_rejected": "(-inf, inf)"}
)
def own_odpo(pairs: Pairs, *, beta: float = 0.1, alpha: float = 1.0) -> PerPair:
    """Two columns: the margin asked for grows with the gap of the scores, which may be zero or negative in the data."""
    gap = (pairs.columns["score_chosen"] - pairs.columns["score_rejected"]).clamp(min=1e-3)
    return -F.logsigmoid(beta * pairs.margin - alpha * gap.log())


@loss(source="none", beta_grid=GRID, columns={"trust": "(0, 1]"})
def own_trusted(pairs: Pairs, *, beta: float = 0.1) -> Objective:
    """A mean weighted by a column: the weights are summed over the global batch."""
    trust = pairs.columns["trust"]
    return Objective(torch.zeros_like(pairs.margin), (Ratio(-trust * F.logsigmoid(beta * pairs.margin), trust),))


@loss(source="arXiv:2404.19733", beta_grid=GRID, grids={"weight": (0.5, 1.0)})
def own_rpo(pairs: Pairs, *, beta: float = 0.1, weight: float = 1.0) -> Objective:
    """DPO beside the likelihood, a mean over all tokens."""
    return Objective(-F.logsigmoid(beta * pairs.margin), (pairs.chosen.nll(weight),))


@loss(source="arXiv:2405.16681", beta_grid=GRID, needs=("gold",), reference=False)
def own_tpo(pairs: Pairs, *, beta: float = 0.1) -> Objective:
    """The likelihood of a third answer."""
    return Objective(-F.logsigmoid(beta * (pairs.chosen.logp - pairs.rejected.logp)), (pairs.gold.nll(),))


@loss(source="arXiv:2406.11827", beta_grid=GRID, needs=("collision",), stops_gradient=True)
def own_wpo(pairs: Pairs, *, beta: float = 0.1) -> PerPair:
    """Weights that the gradient does not see."""
    weights = [(side.mean_logp - side.mean("collision")).exp() for side in (pairs.chosen, pairs.rejected)]
    return -(weights[0] * weights[1]).clamp(max=1).detach() * F.logsigmoid(beta * pairs.margin)


@loss(source="arXiv:2404.11999", beta_grid=GRID, needs=("reference_kl",), start=math.log(2))
def own_tdpo1(pairs: Pairs, *, beta: float = 0.1) -> PerPair:
    """A gradient through the divergence."""
    drift = pairs.rejected.total("reference_kl") - pairs.chosen.total("reference_kl")
    return -F.logsigmoid(beta * (pairs.margin - drift))


@loss(source="arXiv:2502.13177", beta_grid=GRID, needs=("extrapolated", "interpolated"), start=math.log(2))
def own_eps_dpo(pairs: Pairs, *, beta: float = 0.1, epsilon: float = 0.01) -> PerPair:
    """Three values of beta, by what the margin does along two steps; each need changes few pairs."""
    at = [
        pairs.chosen.total("interpolated") - pairs.rejected.total("interpolated"),
        pairs.chosen.logp - pairs.rejected.logp,
        pairs.chosen.total("extrapolated") - pairs.rejected.total("extrapolated"),
    ]
    rising, falling = (at[0] < at[1]) & (at[1] < at[2]), (at[0] > at[1]) & (at[1] > at[2])
    step = rising.to(at[1].dtype) - falling.to(at[1].dtype)
    return -F.logsigmoid(beta / (1 + epsilon * step) * pairs.margin)


@loss(source="arXiv:2406.10957", beta_grid=GRID, needs=("noise",), start=math.log(2))
def own_sampo(pairs: Pairs, *, beta: float = 0.1) -> PerPair:
    """As many tokens of either answer, drawn by the noise."""
    count = torch.minimum(pairs.chosen.length, pairs.rejected.length)[:, None]
    totals = []
    for side in (pairs.chosen, pairs.rejected):
        rank = torch.where(side.mask, side.extras["noise"], torch.inf).argsort(-1).argsort(-1)
        totals.append(torch.where(side.mask & (rank < count), side.policy - side.reference, 0.0).sum(-1))
    return -F.logsigmoid(beta * (totals[0] - totals[1]))


@loss(source="arXiv:2402.01306", beta_grid=GRID, needs=("mismatched",), couples_batch=True, start=1.0)
def own_kto(pairs: Pairs, *, beta: float = 0.1) -> PerPair:
    """Anchored at a mean over the batch of other completions."""
    anchor = pairs.mismatched.logratio.mean().clamp(min=0)
    good, bad = pairs.chosen.logratio - anchor, anchor - pairs.rejected.logratio
    return (-beta * good).sigmoid() + (-beta * bad).sigmoid()


def first_shift() -> dict[str, float]:
    """Nothing seen."""
    return {"delta": 0.0, "seen": 0.0}


def next_shift(pairs: Pairs, statistics: Mapping[str, float], *, beta: float) -> dict[str, Tensor | float]:
    """Mean over all rewards so far; how many there were is read by the next update alone."""
    seen = statistics["seen"] + len(pairs)
    now = beta * (pairs.chosen.logratio + pairs.rejected.logratio).mean() / 2
    return {"delta": statistics["delta"] + len(pairs) / seen * (now - statistics["delta"]), "seen": seen}


@loss(source="arXiv:2404.04656", beta_grid=GRID, running=(first_shift, next_shift), start=2 * math.log(2))
def own_bco(pairs: Pairs, *, beta: float = 0.1) -> PerPair:
    """Rewards against their running mean."""
    delta = pairs.statistics["delta"]
    return -F.logsigmoid(beta * pairs.chosen.logratio - delta) - F.logsigmoid(delta - beta * pairs.rejected.logratio)


def first_moments() -> dict[str, float]:
    """Nothing seen."""
    return {"mean": 0.0, "std": 1.0}


def next_moments(pairs: Pairs, statistics: Mapping[str, float], *, memory: float) -> dict[str, Tensor]:
    """Averages that begin at what they are set to and forget it slowly."""
    new = {"mean": pairs.margin.mean(), "std": pairs.margin.std(correction=0)}
    return {name: memory * statistics[name] + (1 - memory) * value for name, value in new.items()}


@loss(
    source="arXiv:2407.08639",
    beta_grid=GRID,
    grids={"memory": (0.5, 0.9)},
    running=(first_moments, next_moments),
    needs=("noise",),
    couples_batch=True,
    stops_gradient=True,
)
def own_beta_dpo(pairs: Pairs, *, beta: float = 0.1, memory: float = 0.9) -> PerPair:
    """Beta follows the batch; unusual pairs are left out at random and have no loss."""
    margin = pairs.margin.detach()
    unusual = (margin - pairs.statistics["mean"]) / pairs.statistics["std"].clamp(min=1e-3)
    kept = pairs.chosen.extras["noise"][:, 0] < (-unusual.square() / 2).exp()
    strength = (beta * (1 + 0.6 * (margin.mean() - pairs.statistics["mean"]))).clamp(min=1e-3)
    return -kept.to(margin.dtype) * F.logsigmoid(strength * pairs.margin)


@loss(source="none", beta_grid=GRID, needs=("mismatched",), start=math.log(2))
def own_uncoupled_mismatched(pairs: Pairs, *, beta: float = 0.1) -> PerPair:
    """Answers of other prompts weigh on each pair alone: the two of this pair, chosen and rejected."""
    others = pairs.mismatched.logratio.view(2, -1).sum(0)
    return -F.logsigmoid(beta * pairs.margin - 0.1 * others)
