"""One optimizer step's gradient: log-probabilities of a global batch, one value per pair, the mean taken here and nowhere else."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dpobench.logprobs import Batch, by_tokens, completion_logps, pair_batch
from dpobench.pairs import Pairs, Side
from dpobench.registry import Bound
from dpobench.tokens import TokenPair


def pairs_of(logps: Tensor, batch: Batch, rows: Sequence[TokenPair]) -> Pairs:
    """What the loss is given.

    Args:
        logps: of the chosen, then of the rejected completions, shape [2B, T].
        batch: the tokens they belong to.
        rows: the B pairs, with the reference's log-probabilities.
    """
    reference = np.concatenate([*(r.chosen_reference for r in rows), *(r.rejected_reference for r in rows)])
    constant = batch.scatter(torch.from_numpy(reference).to(logps.device, logps.dtype))
    half = len(rows)
    names = sorted({name for row in rows for name in row.columns})
    columns = {n: torch.tensor([row.columns.get(n, float("nan")) for row in rows], device=logps.device) for n in names}
    chosen = Side(logps[:half], constant[:half], batch.mask[:half])
    return Pairs(chosen, Side(logps[half:], constant[half:], batch.mask[half:]), columns)


@dataclass(frozen=True)
class Step:
    """What one step saw, one number per pair of the global batch, in the order of the batch.

    Args:
        values: columns `loss, margin, chosen_logp, rejected_logp, chosen_logratio, rejected_logratio, slope`; shape [B] each, nats.
        tokens: tokens of all sides, prompts counted once per side.
    """

    values: dict[str, Tensor]
    tokens: int


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


def gradient(model: Any, bound: Bound, rows: Sequence[TokenPair], accelerator: Any, budget: int) -> Step:
    """Add the gradient of the mean loss over the global batch to the model's parameters.

    Every process takes its slice of the batch in micro-batches within a token budget; neither the slicing nor the budget
    changes the result beyond rounding, for losses that couple pairs as for those that do not.

    Args:
        model: the prepared policy.
        bound: the loss, one value per pair.
        rows: the global batch, B pairs, the same on every process.
        accelerator: device, precision and collectives.
        budget: most tokens of a padded micro-batch.
    """
    world, rank = accelerator.num_processes, accelerator.process_index
    share = len(rows) // world
    local = list(rows[rank * share : (rank + 1) * share])
    groups = by_tokens([2 * (len(p.prompt) + max(len(p.chosen), len(p.rejected))) for p in local], budget)
    pulls = _coupled(model, bound, rows, local, accelerator, groups) if bound.variant.couples_batch else None
    seen: dict[str, Tensor] = {name: torch.zeros(share, device=accelerator.device) for name in _SEEN}
    for number, group in enumerate(groups):
        members = [local[i] for i in group]
        batch = pair_batch(members, accelerator.device)
        last = number == len(groups) - 1
        with contextlib.nullcontext() if last else accelerator.no_sync(model), accelerator.autocast():
            logps = completion_logps(model, batch)
            logps.retain_grad()
            pairs = pairs_of(logps, batch, members)
            if pulls is None:
                losses = bound(pairs)
                objective = losses.sum() / len(rows)
            else:
                losses, pull = pulls
                losses, pull = losses[group], _regroup(pull, group, share, batch)
                objective = (pull * logps).sum()
            # DDP averages over processes; each holds its part of the mean over the whole batch, so the parts must add up.
            accelerator.backward(objective * world)
        _note(seen, group, pairs, losses, logps, bound, len(rows) / world)
    gathered = {name: accelerator.gather(value.detach()) for name, value in seen.items()}
    return Step(gathered, sum(pair.size for pair in rows))


def _coupled(
    model: Any,
    bound: Bound,
    rows: Sequence[TokenPair],
    local: list[TokenPair],
    accelerator: Any,
    groups: list[list[int]],
) -> tuple[Tensor, Tensor]:
    """Losses and gradient with respect to the log-probabilities of this process's slice, taken on the global batch.

    Returns: loss of each local pair, shape [b], and the gradient of the mean, shape [2b, T], chosen sides first.
    """
    whole = pair_batch(rows, accelerator.device)
    share, rank = len(local), accelerator.process_index
    logps = torch.zeros(2, share, whole.mask.shape[1], device=accelerator.device)
    with torch.no_grad(), accelerator.autocast():
        for group in groups:
            batch = pair_batch([local[i] for i in group], accelerator.device)
            found = completion_logps(model, batch)
            logps[:, group, : found.shape[1]] = found.view(2, len(group), -1)
    # [processes x b, 2, T] in the order of the global batch, then chosen sides first.
    gathered = accelerator.gather(logps.transpose(0, 1).contiguous()).transpose(0, 1).reshape(2 * len(rows), -1)
    leaf = gathered.detach().requires_grad_()
    losses = bound(pairs_of(leaf, whole, rows))
    (pull,) = torch.autograd.grad(losses.mean(), leaf)
    mine = slice(rank * share, (rank + 1) * share)
    return losses.detach()[mine], pull.view(2, len(rows), -1)[:, mine].reshape(2 * share, -1)


def _regroup(pull: Tensor, group: list[int], share: int, batch: Batch) -> Tensor:
    rows = [*group, *(share + i for i in group)]
    return pull[rows][:, : batch.mask.shape[1]]


def _note(
    seen: dict[str, Tensor], group: list[int], pairs: Pairs, losses: Tensor, logps: Tensor, bound: Bound, scale: float
) -> None:
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
    seen["slope_at_start"][group] = start_slopes(bound, pairs)


def at_start(pairs: Pairs) -> Pairs:
    """The same pairs as they were when the policy still equalled the reference; differentiable leaves."""
    sides = [
        Side(side.reference.detach().clone().requires_grad_(), side.reference, side.mask)
        for side in (pairs.chosen, pairs.rejected)
    ]
    return Pairs(sides[0], sides[1], pairs.columns)


def start_slopes(bound: Bound, pairs: Pairs) -> Tensor:
    """Largest pull on a chosen token of each pair at policy = reference, shape [B]."""
    start = at_start(pairs)
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(bound(start).sum(), start.chosen.policy, allow_unused=True)
    return torch.zeros(len(pairs), device=pairs.chosen.policy.device) if slope is None else slope.abs().amax(-1).float()
