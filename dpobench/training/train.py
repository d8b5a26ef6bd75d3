"""The one training harness: every variant, the same start, the same data in the same order, the same optimizer.

The main path is `train`: load the start policy, then for every step take the batch that `batch_at` names, let `step.gradient` add the
gradient of the mean loss, clip, move, log. What a loss may change is the value per pair, nothing else.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dpobench.artifacts.files import digest
from dpobench.data.tokens import TokenPair
from dpobench.errors import Diverged, UserError
from dpobench.losses.quantities import NEEDS
from dpobench.losses.variant import Bound
from dpobench.models import checkpoint
from dpobench.models.packing import adopt
from dpobench.training import cost, state
from dpobench.training.accelerate import prepared
from dpobench.training.blocks import Beside
from dpobench.training.checks import check_start
from dpobench.training.gradient import Step, gradient
from dpobench.training.log import flags, log_row, write_log
from dpobench.training.order import batch_at
from dpobench.training.reference import move, scored, with_noise
from dpobench.training.run import Recipe, Run
from dpobench.training.state import Saving

Progress = Callable[[dict[str, Any]], None]


@dataclass
class Trained:
    """What a training leaves beside its checkpoint and log.

    Args:
        steps: optimizer steps taken.
        tokens: tokens of all sides that were computed, prompts once per side.
        seconds: wall time of the steps.
        checks: step-0 and reload figures.
        flags: what a reader should know, in words.
        layout: "packed", or "padded" and why.
        cost: passes and memory, from `dpobench.training.cost.paid`.
    """

    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    checks: dict[str, float | None] = field(default_factory=dict)
    flags: list[str] = field(default_factory=list)
    layout: str = ""
    cost: dict[str, int | None] = field(default_factory=dict)


def train(
    run: Run,
    bound: Bound,
    pairs: Sequence[TokenPair],
    start: Path,
    target: Path,
    *,
    accelerator: Any,
    saving: Saving | None = None,
    progress: Progress = lambda row: None,
) -> Trained:
    """Train one run.

    Args:
        run: what to train.
        bound: its loss.
        pairs: training pairs with the reference's log-probabilities and whatever else of it the loss declared.
        start: folder of the start policy.
        target: folder to fill with `checkpoint/` and `log.jsonl`.
        accelerator: from `accelerator_for`.
        saving: what a long run keeps on its way, a state to go on from after a kill and checkpoints; None keeps nothing.
        progress: called with every row of the log.

    Raises:
        Diverged: a loss or gradient is not finite; the log up to there lies in `target`.
        DpobenchError: at step 0 the policy does not equal the reference.
        UserError: the batch does not divide by the number of processes, or is larger than the data.
    """
    recipe = run.recipe
    steps = _steps(recipe, len(pairs), accelerator.num_processes)
    # In evaluation mode, or the policy would not equal its reference at step 0: not every dropout is a module of its own.
    policy = checkpoint.load_model(start, device=str(accelerator.device))
    beside = _beside(start, bound, run, policy, pairs)
    model, optimizer = prepared(policy, accelerator, recipe)
    first, told, log, beside = state.resumed(saving, model, optimizer, accelerator, beside)
    result = Trained(**told)
    cost.begin(accelerator.device)
    saved = time.monotonic()
    for step in range(first, steps):
        began = time.monotonic()
        rows, beside = _rows(pairs, run, bound, step, beside, accelerator)
        if step == 0:
            result.checks |= check_start(model, bound, rows[: min(len(rows), 8)], accelerator, beside)
        seen = gradient(model, bound, rows, accelerator, recipe.micro_batch_tokens, beside)
        beside = replace(beside, statistics=seen.statistics)
        norm = float(accelerator.clip_grad_norm_(model.parameters(), recipe.clip))
        rate = recipe.rate(step, steps, run.learning_rate)
        seen = _against_start(seen, pairs, run, step) if beside.moves else seen
        log.append(log_row(step, seen, norm, rate, bound, time.monotonic() - began))
        _require_finite(log, target, accelerator)
        _advance(optimizer, rate)
        if beside.moves and (step + 1) % recipe.reference_every == 0:
            move(beside.reference, accelerator.unwrap_model(model), recipe.reference_mix)
        _spend(result, log[-1], began, seen, accelerator.device, again=beside.moves and step >= recipe.reference_every)
        state.keep(saving, step + 1, model, start, accelerator)
        progress(log[-1])
        note = {"step": step + 1, "log": log, "result": asdict(result)}
        saved = state.save(saving, saved, model, optimizer, beside, note, accelerator)
    result.layout, result.flags = beside.layout, flags(log, recipe.clip)
    return _finish(model, start, target, log, accelerator, result)


def _spend(result: Trained, row: dict[str, Any], began: float, seen: Step, device: Any, *, again: bool) -> None:
    row["seconds"] = round(time.monotonic() - began, 4)
    result.seconds += row["seconds"]
    result.cost = cost.paid(result.cost, seen.forwards + again * seen.backwards, seen.backwards, device)


def _advance(optimizer: Any, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad()


def _beside(start: Path, bound: Bound, run: Run, policy: Any, pairs: Sequence[TokenPair]) -> Beside:
    """What goes beside the policy at first, and how pairs are laid out.

    A second copy of the start policy is there where a loss asks for both distributions or the reference moves. Layouts are compared
    before accelerate wraps the policy in a lower precision, whose rounding would hide what they differ by.
    """
    moves, live = run.recipe.reference_every > 0 and bound.variant.spec.reference, None
    if moves or any(NEEDS[name].source == "both" for name in bound.variant.needs):
        live = checkpoint.load_model(start, device=str(policy.device)).requires_grad_(requires_grad=False)
    refused = [adopt(one, pairs) for one in (policy, live) if one is not None]
    why = next((reason for reason in refused if reason), None)
    return Beside(live, bound.initial(), moves, "packed" if why is None else f"padded ({why})")


def _batch(pairs: Sequence[TokenPair], run: Run, step: int) -> list[TokenPair]:
    return [pairs[i] for i in batch_at(step, run.recipe.batch, len(pairs), run.seed)]


def _rows(
    pairs: Sequence[TokenPair], run: Run, bound: Bound, step: int, beside: Beside, accelerator: Any
) -> tuple[list[TokenPair], Beside]:
    """The pairs of a step with its noise, and with the log-probabilities of a reference that has moved."""
    recipe, needs = run.recipe, bound.variant.needs
    torch.manual_seed(int(digest("step", run.seed, step), 16))
    rows = _batch(pairs, run, step)
    if beside.moves and step >= recipe.reference_every:
        with accelerator.autocast():
            rows = scored(beside.reference, rows, needs, budget=recipe.micro_batch_tokens)
    copied = beside.moves and recipe.reference_mix == 1 and step % recipe.reference_every == 0
    beside = replace(beside, equal=step == 0 or copied)
    return (with_noise(rows, run.seed, step) if "noise" in needs else rows), beside


def _against_start(seen: Step, pairs: Sequence[TokenPair], run: Run, step: int) -> Step:
    """What is logged is measured from the start policy, as for every other run, wherever the reference has moved to."""
    rows = _batch(pairs, run, step)
    values = dict(seen.values)
    for side in ("chosen", "rejected"):
        start = torch.tensor([float(getattr(row, f"{side}_reference").sum(dtype=np.float64)) for row in rows])
        values[f"{side}_logratio"] = values[f"{side}_logp"] - start.to(values[f"{side}_logp"])
    return replace(seen, values=values | {"margin": values["chosen_logratio"] - values["rejected_logratio"]})


def _require_finite(log: list[dict[str, Any]], target: Path, accelerator: Any) -> None:
    """Stop at the first value that is not finite; the log up to it is kept."""
    for name, what in (("loss", "loss"), ("gradient_norm", "gradient")):
        if not np.isfinite(log[-1][name]):
            write_log(target, log, accelerator)
            raise Diverged(log[-1]["step"], what)


def _steps(recipe: Recipe, pairs: int, world: int) -> int:
    """Optimizer steps of a training, if the batch suits the data and the processes."""
    batch = recipe.batch
    if batch % world:
        raise UserError(f"recipe.batch = {batch} does not divide among {world} processes; choose a multiple of {world}")
    if pairs < batch:
        raise UserError(f"recipe.batch = {batch}, but there are {pairs} training pairs; choose a smaller batch")
    return recipe.steps(pairs)


def _finish(
    model: Any, start: Path, target: Path, log: list[dict[str, Any]], accelerator: Any, result: Trained
) -> Trained:
    result.steps, result.tokens = len(log), sum(row["tokens"] for row in log)
    if accelerator.is_main_process:
        write_log(target, log, accelerator)
        tokenizer = checkpoint.load_tokenizer(start)
        # Without the autocast that `prepare` laid around it, the model answers in float32, as it will when loaded again.
        bare = accelerator.unwrap_model(model, keep_fp32_wrapper=False)
        result.checks["reload_max_difference"] = checkpoint.save(bare, tokenizer, target / "checkpoint")
    accelerator.wait_for_everyone()
    return result
