"""The one training harness: every variant, the same start, the same data in the same order, the same optimizer.

`train` reads like the algorithm: take the batch of the step, add the gradient of the mean loss, clip, log, step, save. What a loss may
change is the value per pair, nothing else.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from dpobench.artifacts.files import digest
from dpobench.artifacts.records import Checks, Cost
from dpobench.data.tokens import TokenPair
from dpobench.errors import Diverged, UserError
from dpobench.losses.quantities import NEEDS
from dpobench.losses.variant import Bound
from dpobench.models import checkpoint
from dpobench.models.packing import adopt
from dpobench.training import cost
from dpobench.training.accelerate import Accelerator, prepared
from dpobench.training.checks import check_start
from dpobench.training.gradient import gradient
from dpobench.training.log import LogRow, flags, log_row, write_log
from dpobench.training.loss_inputs import AuxiliaryState
from dpobench.training.order import batch_at
from dpobench.training.reference import move, score_pairs, with_noise
from dpobench.training.run import Recipe, Run
from dpobench.training.state import Saving, TrainingState, save_checkpoint

Progress = Callable[[LogRow], None]


@dataclass
class Trained:
    """What a training leaves besides its checkpoint and log.

    Args:
        steps: optimizer steps taken.
        tokens: tokens of all sides that were computed, prompts once per side.
        seconds: wall time of the steps.
        checks: figures of the check before step 0 and of reading the checkpoint again.
        flags: what a reader should know, in words.
        layout: "packed", or "padded" and why.
        cost: passes and memory; None where nothing was trained.
    """

    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    checks: Checks = field(default_factory=Checks)
    flags: list[str] = field(default_factory=list)
    layout: str = ""
    cost: Cost | None = None


def train(
    run: Run,
    bound: Bound,
    pairs: Sequence[TokenPair],
    start: Path,
    target: Path,
    *,
    accelerator: Accelerator,
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
        saving: what a long run saves on its way, a state to go on from after a kill and checkpoints; None saves nothing.
        progress: called with every row of the log.

    Raises:
        Diverged: a loss or gradient is not finite; the log up to there is in `target`.
        DpobenchError: at step 0 the policy does not equal the reference.
        UserError: the batch does not divide by the number of processes, or is larger than the data.
    """
    recipe = run.recipe
    steps = _steps(recipe, len(pairs), accelerator.num_processes)
    state = start_state(run, bound, pairs, start, accelerator)
    if saving is not None:
        state.load(saving, accelerator)
    cost.begin(accelerator.device)
    saved = time.monotonic()
    for step in range(state.step, steps):
        began = time.monotonic()
        rows = [pairs[i] for i in batch_at(step, recipe.batch, len(pairs), run.seed)]
        # Whatever draws random numbers within a step draws the same ones after a kill.
        torch.manual_seed(int(digest("step", run.seed, step), 16))
        batch = _with_step_values(rows, run, bound, state, accelerator)
        if step == 0:
            state.checks = check_start(state.model, bound, batch[:8], accelerator, state.auxiliary)

        measured = gradient(state.model, bound, batch, accelerator, recipe.micro_batch_tokens, state.auxiliary)
        norm = float(accelerator.clip_grad_norm_(state.model.parameters(), recipe.clip))
        rate = recipe.rate(step, steps, run.learning_rate)

        logged = measured.against_start(rows) if state.reference_moves else measured
        state.log.append(log_row(step, logged, norm, rate, bound, time.monotonic() - began))
        _require_finite(state.log, target, accelerator)

        for group in state.optimizer.param_groups:
            group["lr"] = rate
        state.optimizer.step()
        state.optimizer.zero_grad()
        state.step = step + 1
        moved = state.reference_moves and state.step % recipe.reference_every == 0
        if moved:
            move(state.live_reference, accelerator.unwrap_model(state.model), recipe.reference_mix)
        copied = moved and recipe.reference_mix == 1
        state.auxiliary = replace(state.auxiliary, statistics=measured.statistics, reference_is_policy=copied)

        # A moved reference computed every pair, too.
        forwards = measured.forwards + len(batch) * _reference_has_moved(state, recipe, step)
        peak = cost.peak_bytes(accelerator.device)
        state.cost = cost.with_step(state.cost, forwards, measured.backwards, peak)
        state.set_seconds(time.monotonic() - began)
        progress(state.log[-1])
        if saving is not None and state.step in saving.within:
            save_checkpoint(state.model, start, saving.checkpoints / str(state.step), accelerator)
        # Each process decides by its clock; only the first one writes.
        if saving is not None and time.monotonic() - saved > saving.every:
            state.save(saving.folder, accelerator)
            saved = time.monotonic()
    return _finish(state, start, target, recipe, accelerator)


def start_state(
    run: Run, bound: Bound, pairs: Sequence[TokenPair], start: Path, accelerator: Accelerator
) -> TrainingState:
    """The state before the first step: the start policy, a fresh optimizer, and what the loss needs besides.

    A second copy of the start policy is there where a loss needs both distributions or the reference moves. Layouts are compared
    before accelerate wraps the policy in a lower precision, whose rounding would hide their difference.
    """
    recipe, device = run.recipe, str(accelerator.device)
    # In evaluation mode, or the policy would not equal its reference at step 0: not every dropout is a module.
    policy = checkpoint.load_model(start, device=device)
    moves, reference = recipe.reference_every > 0 and bound.variant.spec.reference, None
    if moves or any(NEEDS[name].source == "both" for name in bound.variant.needs):
        reference = checkpoint.load_model(start, device=device).requires_grad_(requires_grad=False)
    refusals = [adopt(model, pairs) for model in (policy, reference) if model is not None]
    why = next((reason for reason in refusals if reason), None)
    auxiliary = AuxiliaryState(reference, bound.initial(), packed=why is None, reference_is_policy=True)
    model, optimizer = prepared(policy, accelerator, recipe)
    return TrainingState(model, optimizer, auxiliary, moves, "packed" if why is None else f"padded ({why})")


def _reference_has_moved(state: TrainingState, recipe: Recipe, step: int) -> bool:
    """Whether the reference of a step is no longer the start policy."""
    return state.reference_moves and step >= recipe.reference_every


def _with_step_values(
    rows: list[TokenPair], run: Run, bound: Bound, state: TrainingState, accelerator: Accelerator
) -> list[TokenPair]:
    """The pairs of a step with its noise, and with the log-probabilities of a reference that has moved."""
    recipe, needs = run.recipe, bound.variant.needs
    if _reference_has_moved(state, recipe, state.step):
        with accelerator.autocast():
            rows = score_pairs(state.live_reference, rows, needs, budget=recipe.micro_batch_tokens)
    return with_noise(rows, run.seed, state.step) if "noise" in needs else rows


def _require_finite(log: Sequence[LogRow], target: Path, accelerator: Accelerator) -> None:
    """Stop at the first value that is not finite; the log up to it is written."""
    for name, value in (("loss", log[-1].loss), ("gradient", log[-1].gradient_norm)):
        if not np.isfinite(value):
            if accelerator.is_main_process:
                write_log(target, log)
            raise Diverged(log[-1].step, name)


def _steps(recipe: Recipe, pairs: int, processes: int) -> int:
    """Optimizer steps of a training, if the batch suits the data and the processes."""
    batch = recipe.batch
    if batch % processes:
        raise UserError(
            f"recipe.batch = {batch} does not divide among {processes} processes; choose a multiple of {processes}"
        )
    if pairs < batch:
        raise UserError(f"recipe.batch = {batch}, but there are {pairs} training pairs; choose a smaller batch")
    return recipe.steps(pairs)


def _finish(state: TrainingState, start: Path, target: Path, recipe: Recipe, accelerator: Accelerator) -> Trained:
    """Write log and checkpoint, and sum up."""
    checks = state.checks
    if accelerator.is_main_process:
        write_log(target, state.log)
        tokenizer = checkpoint.load_tokenizer(start)
        # Without the autocast that `prepare` laid around it, the model answers in float32, as it will when loaded again.
        bare = accelerator.unwrap_model(state.model, keep_fp32_wrapper=False)
        difference = checkpoint.save(bare, tokenizer, target / "checkpoint")
        checks = checks.model_copy(update={"reload_max_difference": difference})
    accelerator.wait_for_everyone()
    return Trained(
        steps=len(state.log),
        tokens=sum(row.tokens for row in state.log),
        seconds=state.seconds,
        checks=checks,
        flags=flags(state.log, recipe.clip),
        layout=state.layout,
        cost=state.cost,
    )
