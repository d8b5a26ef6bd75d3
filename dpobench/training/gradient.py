"""One optimizer step's gradient: log-probabilities of a global batch, one value per pair, the mean taken here and nowhere else.

Shapes in this module: B pairs in the global batch, b of them on this process, T tokens of the longest completion.
"""

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dpobench.data.tokens import TokenPair
from dpobench.losses.pairs import Objective, Pairs
from dpobench.losses.quantities import NEEDS
from dpobench.losses.variant import Bound
from dpobench.models.lm_head import most_stored
from dpobench.models.logprobs import Device, by_tokens, head_of, within
from dpobench.models.packing import first_fit
from dpobench.models.protocols import LanguageModel
from dpobench.training.accelerate import Accelerator
from dpobench.training.loss_inputs import (
    AuxiliaryState,
    PolicyValues,
    lay_out,
    loss_pairs,
    pairs_at_start,
    pairs_of_first_step,
    policy_values,
)

# Columns of `Measurements.per_pair`.
PER_PAIR = (
    "loss",
    "margin",
    "chosen_logp",
    "rejected_logp",
    "chosen_logratio",
    "rejected_logratio",
    "chosen_gradient",
    "chosen_gradient_at_start",
)


@dataclass(frozen=True)
class Measurements:
    """What was measured while the gradient of a step was computed.

    Args:
        per_pair: the columns `PER_PAIR`, shape [B] each, in the order of the batch. `loss`; `margin`, log-probabilities and log-ratios in
            nats; `chosen_gradient`, the largest derivative (absolute value) of the pair's loss with respect to the log-probability of a
            token of the chosen answer, and the same where the policy equals the reference.
        tokens: tokens of all sides, prompts counted once per side.
        statistics: running statistics, this step counted.
        forwards: pairs that a model computed, each time it did: the policy's, a live reference's, those of mismatched answers.
        backwards: pairs that a gradient went back through.
    """

    per_pair: Mapping[str, Tensor]
    tokens: int
    statistics: Mapping[str, float] = field(default_factory=dict)
    forwards: int = 0
    backwards: int = 0

    def against_start(self, rows: Sequence[TokenPair]) -> "Measurements":
        """The same with log-ratios and margins to the start policy, wherever the reference has moved to.

        Args:
            rows: the B pairs with the start policy's log-probabilities.
        """
        columns = dict(self.per_pair)
        for side in ("chosen", "rejected"):
            start = torch.tensor([float(getattr(row, f"{side}_reference").sum(dtype=np.float64)) for row in rows])
            columns[f"{side}_logratio"] = columns[f"{side}_logp"] - start.to(columns[f"{side}_logp"])
        return replace(self, per_pair=columns | {"margin": columns["chosen_logratio"] - columns["rejected_logratio"]})


@dataclass(frozen=True)
class _WholeBatch:
    """Loss and gradient of this process's pairs, for a loss that must see the global batch at once.

    Args:
        losses: shape [b].
        gradients: of the mean loss with respect to each differentiable value of the policy, shape [sides, b, T].
        chosen_gradients_at_start: see `Measurements`, shape [b].
        statistics: running statistics, this batch counted.
    """

    losses: Float[Tensor, " b"]
    gradients: PolicyValues
    chosen_gradients_at_start: Float[Tensor, " b"]
    statistics: Mapping[str, float]


def gradient(
    model: LanguageModel,
    bound: Bound,
    rows: Sequence[TokenPair],
    accelerator: Accelerator,
    budget: int,
    auxiliary: AuxiliaryState | None = None,
) -> Measurements:
    """Add the gradient of the objective over the global batch to the model's parameters.

    Every process takes its slice of the batch in micro-batches within a token budget; neither the slicing nor the budget
    changes the result beyond rounding: not for losses that couple pairs, not for ratios of sums, not for running statistics.

    Args:
        model: the prepared policy.
        bound: the loss.
        rows: the global batch, B pairs, the same on every process.
        accelerator: device, precision and collectives.
        budget: most tokens of a micro-batch.
        auxiliary: layout of the pairs; live reference and running statistics, where the loss declared them.
    """
    auxiliary = auxiliary or AuxiliaryState()
    device, world, rank = accelerator.device, accelerator.num_processes, accelerator.process_index
    share = len(rows) // world
    local = list(rows[rank * share : (rank + 1) * share])
    groups = _micro_batches(local, bound, budget, model, packed=auxiliary.packed)
    whole = None
    if bound.variant.sees_whole_batch:
        whole = _whole_batch(model, bound, rows, local, accelerator, groups, auxiliary)
    columns = {name: torch.zeros(share, device=device) for name in PER_PAIR}
    denominators: Sequence[Tensor] = ()
    # One context for all micro-batches: weights are cast to a lower precision once a step.
    with accelerator.autocast():
        for group in groups:
            members = [local[i] for i in group]
            layout = lay_out(members, bound, device, packed=auxiliary.packed, pairs_only=whole is not None)
            with contextlib.nullcontext() if group is groups[-1] else accelerator.no_sync(model):
                values = policy_values(model, layout, bound, auxiliary.reference)
                logps = values["logp"]
                logps.retain_grad()
                pairs = loss_pairs(values, layout, reference_is_policy=auxiliary.reference_is_policy)
                if whole is None:
                    part: Objective = bound.objective(pairs)
                    denominators = denominators or _denominators(bound, rows, device, part)
                    losses = part.each(denominators, len(rows))
                    objective = losses.sum() / len(rows)
                    at_start = chosen_gradients_at_start(bound, pairs, denominators, len(rows))
                else:
                    losses, at_start = whole.losses[group], whole.chosen_gradients_at_start[group]
                    objective = _with_gradient_of(whole, values, group)
                # DDP averages over processes; each holds its part of the mean over the whole batch: the parts must add up.
                with torch.autocast(device.type, enabled=False):
                    accelerator.backward(objective * world)
            with torch.no_grad():
                columns["loss"][group] = losses.detach().float()
                columns["margin"][group] = pairs.margin.float()
                for name, side in (("chosen", pairs.chosen), ("rejected", pairs.rejected)):
                    columns[f"{name}_logp"][group] = side.logp.float()
                    columns[f"{name}_logratio"][group] = side.logratio.float()
                if logps.grad is not None:
                    largest = logps.grad[: len(group)].abs().amax(-1).float()
                    columns["chosen_gradient"][group] = largest * (len(rows) / world)
                columns["chosen_gradient_at_start"][group] = at_start
    gathered = {name: accelerator.gather(column.detach()) for name, column in columns.items()}
    forwards = len(rows) * _passes(bound, twice=whole is not None)
    statistics = whole.statistics if whole else {}
    return Measurements(gathered, sum(pair.size for pair in rows), statistics, forwards, len(rows))


def _passes(bound: Bound, *, twice: bool) -> int:
    """How often a step computes each pair forward; twice where a pass over the whole batch comes before the one with a gradient."""
    needs = bound.variant.needs
    models = 1 + any(NEEDS[name].source == "both" for name in needs)
    # Mismatched answers are computed once: in the pass over the whole batch, where there is one.
    return models * (1 + twice) + ("mismatched" in needs)


def _micro_batches(
    rows: Sequence[TokenPair], bound: Bound, budget: int, model: LanguageModel, *, packed: bool
) -> list[list[int]]:
    """Indices of pairs whose tokens, shared prompts once or padding counted, stay within the budget.

    Answers of a large vocabulary fill it sooner: their table is stored for backward if it is small enough.
    """
    weight = head_of(model).weight
    budget = within(budget, weight.device)
    sizes = [_size(row, bound, budget / most_stored(weight), packed=packed) for row in rows]
    return first_fit(sizes, budget) if packed else by_tokens(sizes, budget)


def _size(row: TokenPair, bound: Bound, per_answer_token: float, *, packed: bool) -> int:
    """Tokens that the larger of a pair's passes computes: that of the pair, and that of its prompt with another one's answers."""
    sides = [row.chosen, row.rejected]
    if row.gold is not None and "gold" in bound.variant.needs:
        sides.append(row.gold)
    answer_tokens = sum(map(len, sides))
    padded = len(sides) * (len(row.prompt) + max(map(len, sides)))
    size = len(row.prompt) + answer_tokens if packed else padded
    size = max(size, math.ceil(per_answer_token * answer_tokens))
    if row.mismatched is None or "mismatched" not in bound.variant.needs:
        return size
    return max(size, _size(row.mismatched, bound, per_answer_token, packed=packed))


def _denominators(bound: Bound, rows: Sequence[TokenPair], device: Device, part: Objective) -> Sequence[Tensor]:
    """Denominators of the global batch's ratios, if a part of it has any; the reference stands in for the policy, which is not in them."""
    if not part.ratios:
        return ()
    layout = lay_out(rows, bound, device)
    zeros = torch.zeros(layout.completions.mask.shape, device=device)
    stand_in = dict.fromkeys(("logp", *bound.variant.needs), zeros)
    if layout.mismatched is not None:
        stand_in["mismatched"] = torch.zeros(layout.mismatched.mask.shape, device=device)
    with torch.no_grad():
        objective: Objective = bound.objective(pairs_at_start(loss_pairs(stand_in, layout)))
    return objective.denominators


def _whole_batch(
    model: LanguageModel,
    bound: Bound,
    rows: Sequence[TokenPair],
    local: list[TokenPair],
    accelerator: Accelerator,
    groups: list[list[int]],
    auxiliary: AuxiliaryState,
) -> _WholeBatch:
    """The loss on the global batch's log-probabilities, and its gradient with respect to them, for this process's pairs."""
    whole = lay_out(rows, bound, accelerator.device)
    share, rank = len(local), accelerator.process_index
    # Of this process's pairs, shape [sides, b, T].
    parts: dict[str, Tensor] = {}
    with torch.no_grad(), accelerator.autocast():
        for group in groups:
            layout = lay_out([local[i] for i in group], bound, accelerator.device, packed=auxiliary.packed)
            for name, values in policy_values(model, layout, bound, auxiliary.reference).items():
                laid = whole.mismatched if name == "mismatched" and whole.mismatched else whole.completions
                shape = len(laid.mask) // len(rows), share, laid.mask.shape[1]
                part = parts.setdefault(name, values.new_zeros(shape))
                part[:, group, : values.shape[1]] = values.view(shape[0], len(group), -1)
    # Gathered as [processes x b, sides, T], in the order of the global batch, then laid side after side.
    global_values = {
        name: accelerator.gather(part.transpose(0, 1).contiguous()).transpose(0, 1).flatten(0, 1).detach()
        for name, part in parts.items()
    }
    equal = auxiliary.reference_is_policy
    before = loss_pairs(global_values, whole, reference_is_policy=equal)
    statistics = bound.update(before, auxiliary.statistics)
    leaves = {name: values.requires_grad_() for name, values in global_values.items() if _differentiable(name)}
    losses: Tensor = bound(loss_pairs(global_values, whole, statistics, reference_is_policy=equal))
    derivatives = torch.autograd.grad(losses.mean(), list(leaves.values()), allow_unused=True)
    mine = slice(rank * share, (rank + 1) * share)
    gradients = {
        name: derivative.reshape(-1, len(rows), derivative.shape[1])[:, mine]
        for name, derivative in zip(leaves, derivatives, strict=True)
        if derivative is not None
    }
    constants = loss_pairs({name: values.detach() for name, values in global_values.items()}, whole)
    return _WholeBatch(losses.detach()[mine], gradients, chosen_gradients_at_start(bound, constants)[mine], statistics)


def _differentiable(name: str) -> bool:
    return name == "logp" or (name in NEEDS and NEEDS[name].differentiable)


def _with_gradient_of(whole: _WholeBatch, values: PolicyValues, group: list[int]) -> Float[Tensor, ""]:
    """A scalar whose gradient with respect to a micro-batch's values is that of the loss on the global batch."""
    products = []
    for name, of_whole in whole.gradients.items():
        part = of_whole[:, group, : values[name].shape[1]].flatten(0, 1)
        products.append((part * values[name]).sum())
    return torch.stack(products).sum()


def chosen_gradients_at_start(
    bound: Bound, pairs: Pairs, denominators: Sequence[Tensor] | None = None, size: int | None = None
) -> Float[Tensor, " b"]:
    """Largest derivative of each pair's loss with respect to a chosen token's log-probability, where the policy is the reference.

    Args:
        bound: the loss.
        pairs: b pairs.
        denominators: of the global batch's ratios; None if these pairs are all of it.
        size: pairs of the global batch; None likewise.
    """
    start = pairs_of_first_step(bound, pairs)
    with torch.enable_grad():
        each = bound.objective(start).each(denominators, size)
        (derivative,) = torch.autograd.grad(each.sum(), start.chosen.policy, allow_unused=True)
    if derivative is None:
        return torch.zeros(len(pairs), device=pairs.chosen.policy.device)
    return derivative.abs().amax(-1).float()
