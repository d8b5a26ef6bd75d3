"""One optimizer step's gradient: log-probabilities of a global batch, one value per pair, the mean taken here and nowhere else."""

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dpobench.data.tokens import TokenPair
from dpobench.losses.pairs import Objective, Pairs
from dpobench.losses.quantities import NEEDS
from dpobench.losses.variant import Bound
from dpobench.models.lm_head import most_kept
from dpobench.models.logprobs import by_tokens, head_of, within
from dpobench.models.packing import first_fit
from dpobench.training.blocks import Beside, Values, at_start, block_of, pairs_of, started, values_of


@dataclass(frozen=True)
class Step:
    """What one step saw, one number per pair of the global batch, in the order of the batch.

    Args:
        values: columns `loss, margin, chosen_logp, rejected_logp, chosen_logratio, rejected_logratio, slope`; shape [B] each, nats.
        tokens: tokens of all sides, prompts counted once per side.
        statistics: running statistics, this step counted.
        forwards: pairs that a model computed, each time it did: the policy's, a live reference's, those of mismatched answers.
        backwards: pairs that a gradient went back through.
    """

    values: dict[str, Tensor]
    tokens: int
    statistics: Mapping[str, float] = field(default_factory=dict)
    forwards: int = 0
    backwards: int = 0


@dataclass(frozen=True)
class _Whole:
    """What the global batch gave for the local pairs of a loss that must see it at once."""

    losses: Tensor
    pulls: Values
    slopes_at_start: Tensor
    statistics: Mapping[str, float]


_SEEN = (
    "loss",
    "margin",
    "chosen_logp",
    "rejected_logp",
    "chosen_logratio",
    "rejected_logratio",
    "slope",
    "slope_at_start",
)


def gradient(
    model: Any, bound: Bound, rows: Sequence[TokenPair], accelerator: Any, budget: int, beside: Beside | None = None
) -> Step:
    """Add the gradient of the objective over the global batch to the model's parameters.

    Every process takes its slice of the batch in micro-batches within a token budget; neither the slicing nor the budget
    changes the result beyond rounding: not for losses that couple pairs, not for ratios of sums, not for running statistics.

    Args:
        model: the prepared policy.
        bound: the loss.
        rows: the global batch, B pairs, the same on every process.
        accelerator: device, precision and collectives.
        budget: most tokens of a padded micro-batch.
        beside: live reference and running statistics, where the loss declared them.
    """
    beside = beside or Beside()
    world, rank = accelerator.num_processes, accelerator.process_index
    share = len(rows) // world
    local = list(rows[rank * share : (rank + 1) * share])
    groups = _groups(local, bound, budget, model, packed=beside.packed)
    whole = None
    if bound.variant.sees_whole_batch:
        whole = _on_whole_batch(model, bound, rows, local, accelerator, groups, beside)
    seen: dict[str, Tensor] = {name: torch.zeros(share, device=accelerator.device) for name in _SEEN}
    denominators: Sequence[Tensor] = ()
    # One context for all micro-batches: weights are cast to a lower precision once a step.
    with accelerator.autocast():
        for group in groups:
            members = [local[i] for i in group]
            block = block_of(members, bound, accelerator.device, packed=beside.packed, pairs_only=whole is not None)
            with contextlib.nullcontext() if group is groups[-1] else accelerator.no_sync(model):
                values = values_of(model, block, bound, beside.reference)
                values["logp"].retain_grad()
                pairs = pairs_of(values, block, equal=beside.equal)
                if whole is None:
                    found = bound.objective(pairs)
                    denominators = denominators or _denominators(bound, rows, accelerator.device, found)
                    losses = found.each(denominators, len(rows))
                    objective, slopes = losses.sum() / len(rows), _start_slopes(bound, pairs, denominators, len(rows))
                else:
                    losses, slopes = whole.losses[group], whole.slopes_at_start[group]
                    objective = _pulled(whole.pulls, values, group, share)
                # DDP averages over processes; each holds its part of the mean over the whole batch: the parts must add up.
                with torch.autocast(accelerator.device.type, enabled=False):
                    accelerator.backward(objective * world)
            _note(seen, group, pairs, losses, values["logp"], len(rows) / world)
            seen["slope_at_start"][group] = slopes
    gathered = {name: accelerator.gather(value.detach()) for name, value in seen.items()}
    forwards = len(rows) * _passes(bound, first=whole is not None)
    return Step(gathered, sum(pair.size for pair in rows), whole.statistics if whole else {}, forwards, len(rows))


def _passes(bound: Bound, *, first: bool) -> int:
    """How often a step computes each pair forward; `first` tells of a pass over the whole batch before the one with a gradient."""
    needs = bound.variant.needs
    policy = 1 + any(NEEDS[name].source == "both" for name in needs)
    # Mismatched answers are computed once: in the pass over the whole batch, where there is one.
    return policy * (1 + first) + ("mismatched" in needs)


def _groups(rows: Sequence[TokenPair], bound: Bound, budget: int, model: Any, *, packed: bool) -> list[list[int]]:
    """Micro-batches: indices of pairs whose tokens, shared prompts once or padding counted, stay within the budget.

    Answers of a large vocabulary fill it sooner: their table is kept for backward if it is small enough.
    """
    weight = head_of(model).weight
    budget = within(budget, weight.device)
    sizes = [_size(row, bound, budget / most_kept(weight), packed=packed) for row in rows]
    return first_fit(sizes, budget) if packed else by_tokens(sizes, budget)


def _size(row: TokenPair, bound: Bound, per_answer: float, *, packed: bool) -> int:
    """Tokens that the larger of a pair's passes computes: the pair's own, and its prompt with another one's answers."""
    sides = [row.chosen, row.rejected]
    if row.gold is not None and "gold" in bound.variant.needs:
        sides.append(row.gold)
    own = len(row.prompt) + sum(map(len, sides)) if packed else len(sides) * (len(row.prompt) + max(map(len, sides)))
    own = max(own, math.ceil(per_answer * sum(map(len, sides))))
    if row.mismatched is None or "mismatched" not in bound.variant.needs:
        return own
    return max(own, _size(row.mismatched, bound, per_answer, packed=packed))


def _denominators(bound: Bound, rows: Sequence[TokenPair], device: Any, found: Objective) -> Sequence[Tensor]:
    """Denominators of the global batch's ratios, if there are any; the policy does not matter, so the reference stands in for it."""
    if not found.ratios:
        return ()
    block = block_of(rows, bound, device)
    zeros = torch.zeros(block.batch.mask.shape, device=device)
    stand_in = dict.fromkeys(("logp", *bound.variant.needs), zeros)
    if block.mismatched is not None:
        stand_in["mismatched"] = torch.zeros(block.mismatched.mask.shape, device=device)
    with torch.no_grad():
        objective: Objective = bound.objective(at_start(pairs_of(stand_in, block)))
    return objective.denominators


def _on_whole_batch(
    model: Any,
    bound: Bound,
    rows: Sequence[TokenPair],
    local: list[TokenPair],
    accelerator: Any,
    groups: list[list[int]],
    beside: Beside,
) -> _Whole:
    """Losses of this process's pairs and their pulls on what the policy gave, both taken on the global batch."""
    whole = block_of(rows, bound, accelerator.device)
    share, rank = len(local), accelerator.process_index
    parts: dict[str, Tensor] = {}
    with torch.no_grad(), accelerator.autocast():
        for group in groups:
            block = block_of([local[i] for i in group], bound, accelerator.device, packed=beside.packed)
            for name, found in values_of(model, block, bound, beside.reference).items():
                laid = whole.mismatched if name == "mismatched" and whole.mismatched else whole.batch
                shape = len(laid.mask) // len(rows), share, laid.mask.shape[1]
                part = parts.setdefault(name, found.new_zeros(shape))
                part[:, group, : found.shape[1]] = found.view(shape[0], len(group), -1)
    # [processes x b, sides, T] in the order of the global batch, then side by side.
    values = {
        name: accelerator.gather(part.transpose(0, 1).contiguous()).transpose(0, 1).flatten(0, 1).detach()
        for name, part in parts.items()
    }
    statistics = bound.update(pairs_of(values, whole, equal=beside.equal), beside.statistics)
    leaves = {name: value.requires_grad_() for name, value in values.items() if _differentiable(name)}
    losses = bound(pairs_of(values, whole, statistics, equal=beside.equal))
    pulls = torch.autograd.grad(losses.mean(), list(leaves.values()), allow_unused=True)
    mine = slice(rank * share, (rank + 1) * share)
    local_pulls = {
        name: pull.unflatten(0, (-1, len(rows)))[:, mine]
        for name, pull in zip(leaves, pulls, strict=True)
        if pull is not None
    }
    at_first = pairs_of({name: value.detach() for name, value in values.items()}, whole)
    return _Whole(losses.detach()[mine], local_pulls, start_slopes(bound, at_first)[mine], statistics)


def _differentiable(name: str) -> bool:
    return name == "logp" or (name in NEEDS and NEEDS[name].differentiable)


def _pulled(pulls: Values, values: Values, group: list[int], share: int) -> Tensor:
    """A scalar whose gradient is the global batch's pull on this micro-batch."""
    assert all(pull.shape[1] == share for pull in pulls.values())
    parts = []
    for name, pull in pulls.items():
        found = values[name]
        parts.append((pull[:, group, : found.shape[1]].flatten(0, 1) * found).sum())
    return torch.stack(parts).sum()


def _note(seen: dict[str, Tensor], group: list[int], pairs: Pairs, losses: Tensor, logps: Tensor, scale: float) -> None:
    """Write a micro-batch's numbers to their places in the batch."""
    half = len(pairs)
    with torch.no_grad():
        seen["loss"][group] = losses.detach().float()
        seen["margin"][group] = pairs.margin.float()
        for name, side in (("chosen", pairs.chosen), ("rejected", pairs.rejected)):
            seen[f"{name}_logp"][group] = side.logp.float()
            seen[f"{name}_logratio"][group] = side.logratio.float()
        if logps.grad is not None:
            seen["slope"][group] = logps.grad[:half].abs().amax(-1).float() * scale


def start_slopes(bound: Bound, pairs: Pairs) -> Tensor:
    """Largest pull on a chosen token of each pair at policy = reference, of a batch that is whole, shape [B]."""
    return _start_slopes(bound, pairs, None, len(pairs))


def _start_slopes(bound: Bound, pairs: Pairs, denominators: Sequence[Tensor] | None, size: int) -> Tensor:
    start = started(bound, pairs)
    with torch.enable_grad():
        each = bound.objective(start).each(denominators, size)
        (slope,) = torch.autograd.grad(each.sum(), start.chosen.policy, allow_unused=True)
    return torch.zeros(len(pairs), device=pairs.chosen.policy.device) if slope is None else slope.abs().amax(-1).float()
