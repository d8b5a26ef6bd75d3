"""One optimizer step's gradient: log-probabilities of a global batch, one value per pair, the mean taken here and nowhere else."""

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dpobench.logprobs import Laid, by_tokens, completion_logps, completion_values, head_of, pair_batch, within
from dpobench.needs import NEEDS
from dpobench.packing import first_fit, packed_pairs
from dpobench.pairs import Objective, Pairs, Side
from dpobench.registry import Bound
from dpobench.tokens import TokenPair
from dpobench.vocabulary import most_kept

Values = Mapping[str, Tensor]


@dataclass(frozen=True)
class Block:
    """Some pairs laid out as a model reads them.

    Args:
        rows: the b pairs.
        batch: their chosen sides, then the rejected, then the gold answers where these are needed.
        mismatched: completions of other prompts under these, chosen ones first, where they are needed.
    """

    rows: Sequence[TokenPair]
    batch: Laid
    mismatched: Laid | None


@dataclass(frozen=True)
class Beside:
    """What a loss may need beside policy and pairs.

    Args:
        reference: a live reference model.
        statistics: running statistics as the step before left them.
        moves: whether the reference changes during the training.
        layout: "packed" where the models read packed rows (see `dpobench.packing`), else "padded", and why.
        equal: whether the reference is the policy itself in this step. Its log-probabilities are then the policy's own, not those of an
            earlier pass: losses with a kink at 0 would follow the sign of a rounding error, which depends on how the batch was cut.
    """

    reference: Any = None
    statistics: Mapping[str, float] = field(default_factory=dict)
    moves: bool = False
    layout: str = "padded"
    equal: bool = False

    @property
    def packed(self) -> bool:
        """Whether the models read packed rows."""
        return self.layout == "packed"


def block_of(
    rows: Sequence[TokenPair], bound: Bound, device: Any, *, packed: bool = False, pairs_only: bool = False
) -> Block:
    """Lay out what a loss needs of some pairs; of the pairs alone, where what it needs beside them is known already."""
    needs = () if pairs_only else bound.variant.needs
    crossed = [row.mismatched for row in rows if row.mismatched is not None] if "mismatched" in needs else []
    lay = packed_pairs if packed else pair_batch
    batch = lay(rows, device, gold="gold" in bound.variant.needs)
    return Block(rows, batch, lay(crossed, device) if crossed else None)


def values_of(model: Any, block: Block, bound: Bound, reference: Any = None) -> dict[str, Tensor]:
    """All that the loss asks of the policy: "logp" and declared quantities, shape [sides x b, T]; "mismatched", shape [2b, T']."""
    needs = [NEEDS[name] for name in bound.variant.needs]
    asked = [(need, bound.named(need.compute)) for need in needs if need.compute and need.source in ("policy", "both")]
    values = completion_values(model, block.batch, asked, reference)
    if block.mismatched is not None:
        with torch.no_grad():
            values["mismatched"] = completion_logps(model, block.mismatched)
    return values


def pairs_of(
    values: Values, block: Block, statistics: Mapping[str, float] = MappingProxyType({}), *, equal: bool = False
) -> Pairs:
    """What the loss is given.

    Args:
        values: from `values_of`.
        block: the pairs they belong to, with the reference's log-probabilities.
        statistics: running statistics, this batch counted.
        equal: whether the reference is the policy itself.
    """
    logps, rows = values["logp"], block.rows
    size = len(rows)
    # The reference of a gold answer is not computed: a loss that reads it sees that at once.
    absent = [np.full(len(row.gold), np.nan, np.float32) for row in rows if row.gold is not None][
        : len(logps) - 2 * size
    ]
    reference = np.concatenate([*(r.chosen_reference for r in rows), *(r.rejected_reference for r in rows), *absent])
    constant = logps.detach() if equal else _scattered(block.batch, reference, logps)
    extras = {name: value for name, value in values.items() if name not in ("logp", "mismatched")}
    for name in rows[0].extras:
        given = [row.extras[name] for row in rows]
        told = [*(side[0] for side in given), *(side[1] for side in given), *absent]
        extras[name] = _scattered(block.batch, np.concatenate(told), logps)

    if equal:
        extras = _at_start(extras, constant)

    def side(number: int) -> Side:
        part = slice(number * size, (number + 1) * size)
        mask = block.batch.mask[part]
        return Side(logps[part], constant[part], mask, {name: value[part] for name, value in extras.items()})

    others = {"gold": side(2)} if len(logps) > 2 * size else {}
    if block.mismatched is not None and "mismatched" in values:
        others["mismatched"] = _mismatched(values["mismatched"], block.mismatched, rows, equal=equal)
    names = sorted({name for row in rows for name in row.columns})
    numbers = {name: [row.columns.get(name, math.nan) for row in rows] for name in names}
    columns = {name: torch.tensor(told, dtype=torch.float64).to(logps) for name, told in numbers.items()}
    return Pairs(side(0), side(1), columns, others=others).with_statistics(statistics)


def _at_start(extras: Values, reference: Tensor) -> dict[str, Tensor]:
    """What a loss declared as it is where the policy equals the reference; constant."""
    told = {"zero": torch.zeros_like(reference), "reference": reference}
    return {name: told.get(NEEDS[name].start, value).detach() for name, value in extras.items()}


def _scattered(batch: Laid, values: Any, like: Tensor) -> Tensor:
    return batch.scatter(torch.from_numpy(values).to(like.device, like.dtype))


def _mismatched(logps: Tensor, batch: Laid, rows: Sequence[TokenPair], *, equal: bool) -> Side:
    if equal:
        return Side(logps, logps, batch.mask)
    crossed = [row.mismatched for row in rows if row.mismatched is not None]
    reference = np.concatenate([*(r.chosen_reference for r in crossed), *(r.rejected_reference for r in crossed)])
    return Side(logps, _scattered(batch, reference, logps), batch.mask)


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


def at_start(pairs: Pairs) -> Pairs:
    """The same pairs as they were when the policy still equalled the reference; differentiable leaves."""
    sides = []
    for side in (pairs.chosen, pairs.rejected):
        extras = _at_start(side.extras, side.reference)
        sides.append(Side(side.reference.detach().clone().requires_grad_(), side.reference, side.mask, extras))
    others = {name: Side(s.policy.detach(), s.reference, s.mask, s.extras) for name, s in pairs.others.items()}
    if "mismatched" in others:
        crossed = others["mismatched"]
        others["mismatched"] = replace(crossed, policy=crossed.reference)
    return Pairs(sides[0], sides[1], pairs.columns, pairs.statistics, others)


def started(bound: Bound, pairs: Pairs) -> Pairs:
    """`at_start`, with the running statistics of a first step."""
    start = at_start(pairs)
    return start.with_statistics(bound.update(start, bound.initial()))


def start_slopes(bound: Bound, pairs: Pairs) -> Tensor:
    """Largest pull on a chosen token of each pair at policy = reference, of a batch that is whole, shape [B]."""
    return _start_slopes(bound, pairs, None, len(pairs))


def _start_slopes(bound: Bound, pairs: Pairs, denominators: Sequence[Tensor] | None, size: int) -> Tensor:
    start = started(bound, pairs)
    with torch.enable_grad():
        each = bound.objective(start).each(denominators, size)
        (slope,) = torch.autograd.grad(each.sum(), start.chosen.policy, allow_unused=True)
    return torch.zeros(len(pairs), device=pairs.chosen.policy.device) if slope is None else slope.abs().amax(-1).float()
