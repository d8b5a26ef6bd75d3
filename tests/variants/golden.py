"""What other projects' own functions returned, read as sums of registered losses and set beside what these return.

`golden_cases.py` says which registered loss a recorded case is; here it is evaluated on the recorded batch, and every number
that the case holds is compared.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from dpobench import Pairs, Side
from dpobench.losses.quantities import NEEDS
from dpobench.losses.registry import variants
from dpobench.losses.variant import Bound

Case = Mapping[str, Any]
# How the recorded batch is presented to a loss: pairs, the batch they are of, the case.
View = Callable[[Pairs, "Batch", Case], Pairs]
# Running statistics after this batch, where they are not the loss's own first update.
Statistics = Callable[[Pairs], dict[str, float]]


@dataclass(frozen=True)
class Term:
    """One registered loss of a weighted sum.

    Args:
        loss: its name.
        params: its hyper-parameters.
        factor: what it is multiplied by.
        view: how the batch is presented to it; None as recorded.
        statistics: running statistics given outright; None for the loss's own update from nothing.
    """

    loss: str
    params: Mapping[str, Any]
    factor: float = 1.0
    view: View | None = None
    statistics: Statistics | None = None


@dataclass(frozen=True)
class Reading:
    """A recorded case as a weighted sum of registered losses.

    Args:
        terms: the sum; the first is the loss that the case is counted for.
        means: whether `grad_chosen` is with respect to mean log-probabilities, which the project handed to its function.
        label: the sum in words where it is not simply one registered loss times a factor.
    """

    terms: tuple[Term, ...]
    means: bool = False
    label: str = ""

    @property
    def loss(self) -> str:
        """Name of the loss that the case is counted for; empty for an identity that has a label of its own."""
        return "" if self.label else self.terms[0].loss


@dataclass
class Batch:
    """Recorded log-probabilities with the leaves that collect gradients; B chosen rows, then B rejected rows.

    Args:
        policy: per token, nats, shape [2B, T].
        reference: the same under the reference.
        mask: true at completion tokens, shape [2B, T].
        recorded: everything that is recorded of the inputs.
        logits: of the policy, a leaf, shape [2B, T, V]; None where only log-probabilities are recorded.
        averaged: whether the objective is the mean over pairs; false where every pair's own gradient is recorded.
    """

    policy: Tensor
    reference: Tensor
    mask: Tensor
    recorded: Mapping[str, Any] = field(default_factory=dict)
    logits: Tensor | None = None
    averaged: bool = True

    @property
    def half(self) -> int:
        return len(self.mask) // 2

    @cached_property
    def reference_table(self) -> Tensor:
        return torch.tensor(self.recorded["ref_logits"], dtype=torch.float64)[:, :-1].log_softmax(-1)

    @cached_property
    def targets(self) -> Tensor:
        return torch.tensor(self.recorded["input_ids"])[:, 1:]

    def need(self, name: str, bound: Bound) -> Tensor:
        """What a loss declared in `needs`, from the recorded logits and by the function that training uses; shape [2B, T]."""
        need = NEEDS[name]
        assert need.compute is not None
        assert self.logits is not None, f"{name} needs the policy's logits, which this batch does not have"
        policy = self.logits.log_softmax(-1) if need.differentiable else self.logits.detach().log_softmax(-1)
        tables = (policy, self.reference_table, self.targets)
        flat = [table.reshape(-1, *table.shape[2:]) for table in tables]
        given = [flat[0] if need.source in ("policy", "both") else None, flat[1] if need.source != "policy" else None]
        return need.compute(*given, flat[2], **bound.named(need.compute)).view(self.mask.shape)

    def side(self, rows: slice, extras: Mapping[str, Tensor]) -> Side:
        named = {name: value[rows] for name, value in extras.items()}
        return Side(self.policy[rows], self.reference[rows], self.mask[rows], named)

    def pairs(self, bound: Bound, case: Case) -> Pairs:
        """The batch with all that a loss declared, statistics apart."""
        # What nothing is recorded of is given by the views of the cases that need it.
        given = {"noise": torch.full(self.mask.shape, 0.5, dtype=torch.float64)}
        extras = {}
        for name in bound.variant.needs:
            if NEEDS[name].compute is not None:
                extras[name] = self.need(name, bound)
            elif name in given:
                extras[name] = given[name]
        columns = {name: self.column(name, case) for name in bound.variant.columns}
        chosen, rejected = self.side(slice(0, self.half), extras), self.side(slice(self.half, None), extras)
        return Pairs(chosen, rejected, columns, others=self.others(chosen))

    def others(self, chosen: Side) -> dict[str, Side]:
        # No gold answers are recorded. The chosen ones stand in, with a weight of 0 in the only cases that need any.
        found = {"gold": chosen}
        if "kto_mismatched_policy_logps" in self.recorded:
            policy, reference = (
                torch.tensor(self.recorded[f"kto_mismatched_{who}_logps"], dtype=torch.float64)[:, None]
                for who in ("policy", "ref")
            )
            found["mismatched"] = Side(policy, reference, torch.ones_like(policy, dtype=torch.bool))
        return found

    def column(self, name: str, case: Case) -> Tensor:
        values = self.recorded.get(name) or case["params"][COLUMNS[name]]
        return torch.tensor(values, dtype=torch.float64)


# Our name of a column -> the hyper-parameter under which a case holds its values.
COLUMNS = {"win_probability": "p_win"}


def main_batch(recorded: Mapping[str, Any]) -> Batch:
    """The six pairs; log-probabilities are taken from the logits, so that a loss can be differentiated through both."""
    logits = torch.tensor(recorded["policy_logits"], dtype=torch.float64)[:, :-1].clone().requires_grad_()
    targets = torch.tensor(recorded["input_ids"])[:, 1:]
    mask = torch.tensor(recorded["mask"], dtype=torch.bool)
    policy = logits.log_softmax(-1).gather(-1, targets[..., None]).squeeze(-1)
    policy.retain_grad()
    return Batch(policy, torch.tensor(recorded["ref_token_logps"], dtype=torch.float64), mask, recorded, logits)


def extreme_batch(margins: list[float]) -> Batch:
    """Pairs of one-token answers in float32, the margin divided equally between the two sides."""
    half = torch.tensor(margins, dtype=torch.float32)[:, None] / 2
    policy = torch.cat([half, -half]).requires_grad_()
    return Batch(policy, torch.zeros_like(policy), torch.ones_like(policy, dtype=torch.bool), averaged=False)


def batch_of(case: Case, recorded: Mapping[str, Any]) -> Batch:
    return extreme_batch(case["log_ratio_margin"]) if case["batch"] == "extreme" else main_batch(recorded)


@dataclass
class Evaluation:
    """A reading of a case, evaluated and differentiated.

    Args:
        case: the recorded case.
        batch: what it was evaluated on, with gradients.
        losses: one value per pair.
        pairs: what the first term was given.
        reading: the sum.
    """

    case: Case
    batch: Batch
    losses: Tensor
    pairs: Pairs
    reading: Reading

    def single(self, name: str, **params: Any) -> Tensor:
        """Another registered loss on the same pairs, one value per pair."""
        return variants.get(name).bind(**params)(self.pairs).detach()


def presented(term: Term, batch: Batch, case: Case) -> tuple[Bound, Pairs]:
    """A registered loss with its hyper-parameters, and the pairs it is given."""
    bound = variants.get(term.loss).bind(**term.params)
    pairs = batch.pairs(bound, case)
    if term.view is not None:
        pairs = term.view(pairs, batch, case)
    told = term.statistics(pairs.detached()) if term.statistics else bound.update(pairs, bound.initial())
    kept = {name: torch.tensor(value, dtype=torch.float64) for name, value in told.items()}
    return bound, replace(pairs, statistics=kept)


def weighted_sum(terms: tuple[Term, ...], batch: Batch, case: Case) -> tuple[Tensor, Pairs]:
    """Each pair's part of a weighted sum of losses, shape [B], and the pairs that the first was given."""
    given = [presented(term, batch, case) for term in terms]
    parts = [term.factor * bound.objective(pairs).each() for term, (bound, pairs) in zip(terms, given, strict=True)]
    return torch.stack(parts).sum(0), given[0][1]


def evaluated(case: Case, reading: Reading, recorded: Mapping[str, Any]) -> Evaluation:
    batch = batch_of(case, recorded)
    losses, pairs = weighted_sum(reading.terms, batch, case)
    (losses.mean() if batch.averaged else losses.sum()).backward()
    return Evaluation(case, batch, losses.detach(), pairs, reading)


def gradients(found: Evaluation) -> dict[str, Tensor]:
    """Gradients under every name that the file has for them, shape [B].

    Every token of an answer has the same gradient, unless the loss weights tokens. With respect to the sum of the answer's
    log-probabilities it is this gradient; with respect to their mean, which some projects hand to the loss, this times the
    length.
    """
    batch, named = found.batch, {}
    assert batch.policy.grad is not None
    for name, rows in (("chosen", slice(0, batch.half)), ("rejected", slice(batch.half, None))):
        grad, mask = batch.policy.grad[rows], batch.mask[rows]
        index, positions = torch.arange(len(mask)), torch.arange(mask.shape[1]).expand_as(mask)
        first = positions.masked_fill(~mask, mask.shape[1]).amin(1)
        last = positions.masked_fill(~mask, -1).amax(1)
        named[f"grad_first_token_{name}"] = grad[index, first]
        named[f"grad_last_token_{name}"] = grad[index, last]
        named[f"grad_sum_{name}"] = grad.sum(1)
        named[f"grad_{name}"] = grad.sum(1) if found.reading.means else grad[index, first]
    named["grad_first_token"] = torch.cat([named["grad_first_token_chosen"], named["grad_first_token_rejected"]])
    return named


def through_logits(found: Evaluation) -> dict[str, Tensor]:
    """Sums of absolute gradients with respect to the logits of each side, log-probabilities and `needs` together."""
    if found.batch.logits is None or found.batch.logits.grad is None:
        return {}
    sizes = found.batch.logits.grad.abs().sum((1, 2))
    chosen, rejected = sizes[: found.batch.half].sum(), sizes[found.batch.half :].sum()
    return {"grad_logits_abs_sum": chosen + rejected, "grad_logits_rejected_abs_sum": rejected}


def weighted_logps(found: Evaluation) -> Tensor:
    """Sums of log-probabilities with the weights that the loss gave the tokens, told by its gradient; shape [2, 2B].

    Of a logistic loss l the slope in its argument is exp(-l) - 1, so that a token's gradient is its weight times that and beta.
    First under the policy, then under the reference.
    """
    batch = found.batch
    assert batch.policy.grad is not None
    slope = found.reading.terms[0].params["beta"] * -torch.expm1(-found.losses) / len(found.losses)
    weights = batch.policy.grad / torch.cat([-slope, slope])[:, None]
    sums = [torch.where(batch.mask, weights * logps, 0.0).sum(1) for logps in (batch.policy, batch.reference)]
    return torch.stack(sums).detach()


def likelihood(found: Evaluation) -> Tensor:
    """The likelihood beside another term: the last of the sum where it is one, else that of the responses."""
    last = found.reading.terms[-1]
    part = last if last.loss == "sft" else Term("sft", {})
    return weighted_sum((part,), found.batch, found.case)[0].mean().detach()


def beside_dpo(found: Evaluation) -> Tensor:
    return found.single("dpo", beta=found.case["params"]["beta"])


def entropy(found: Evaluation) -> Tensor:
    sides = (found.pairs.chosen, found.pairs.rejected)
    return (sides[0].mean("reference_entropy") + sides[1].mean("reference_entropy")) / 2


def drift(found: Evaluation) -> Tensor:
    sides = (found.pairs.chosen, found.pairs.rejected)
    return torch.cat([side.total("reference_kl") for side in sides]).detach()


def scored_references(found: Evaluation) -> Tensor:
    """The reference's sums as the loss weights them; where it weights the policy's only, as they are."""
    if found.reading.terms[0].loss == "ld_dpo_policy":
        return torch.cat([found.pairs.chosen.reference_logp, found.pairs.rejected.reference_logp])
    return weighted_logps(found)[1]


# What else a case holds of a loss's own quantities -> the same from ours.
OWN: Mapping[str, Callable[[Evaluation], Tensor]] = {
    "kl": lambda found: found.pairs.mismatched.logratio.mean().clamp(min=0),
    "nll": likelihood,
    "preference_term": lambda found: beside_dpo(found).mean(),
    "sft_term": lambda found: (found.losses - beside_dpo(found)).mean(),
    "weight": lambda found: found.losses / beside_dpo(found),
    "delta": lambda found: found.pairs.statistics["delta"],
    "seq_kl": drift,
    "reference_entropy": entropy,
    "scores": lambda found: torch.cat([found.pairs.chosen.mean_logp, found.pairs.rejected.mean_logp]).detach(),
    "policy_logps": lambda found: weighted_logps(found)[0],
    "ref_logps": scored_references,
    "ref_logps_same_draw": scored_references,
}


def numbers(recorded: Any) -> Tensor:
    """A recorded number or list of numbers, shape [N]; what is not finite stands there as a string."""
    return torch.tensor(
        [float(x) for x in (recorded if isinstance(recorded, list) else [recorded])], dtype=torch.float64
    )


def deviation(found: Tensor, recorded: Any) -> float:
    """Largest difference: relative to a number above 1, else to the largest number of the field or 1, whichever is less.

    Where the other project overflowed there is nothing to compare.
    """
    expected = numbers(recorded)
    known = expected.isfinite()
    found, expected = found.double().reshape(-1)[known], expected[known]
    unit = min(1.0, float(expected.abs().max())) or 1.0
    return float(((found - expected).abs() / expected.abs().clamp(min=unit)).max())


def deviations(found: Evaluation, left_out: Collection[str] = ()) -> dict[str, float]:
    """Deviation of each number that a case records, some fields left out."""
    case = {name: value for name, value in found.case.items() if value is not None and name not in left_out}
    ours = {"per_pair": found.losses, "scalar": found.losses.mean()} | gradients(found) | through_logits(found)
    ours |= {name: own(found) for name, own in OWN.items() if name in case}
    return {name: deviation(value, case[name]) for name, value in ours.items() if name in case}
