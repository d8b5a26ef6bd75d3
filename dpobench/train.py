"""The one training harness: every variant, the same start, the same data in the same order, the same optimizer.

The main path is `train`: load the start policy, then for every step take the batch that `batch_at` names, let `step.gradient` add the
gradient of the mean loss, clip, move, log. What a loss may change is the value per pair, nothing else.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dpobench import checkpoint, cost, states, store
from dpobench.activations import recompute
from dpobench.errors import Diverged, DpobenchError, UserError
from dpobench.experiment import Recipe, Run
from dpobench.needs import NEEDS
from dpobench.packing import adopt
from dpobench.pairs import Pairs
from dpobench.reference import move, scored, with_noise
from dpobench.registry import Bound
from dpobench.states import Saving
from dpobench.step import Beside, Step, block_of, gradient, pairs_of, started, values_of
from dpobench.tokens import TokenPair

Progress = Callable[[dict[str, Any]], None]


@lru_cache(maxsize=8)
def order(seed: int, epoch: int, pairs: int) -> np.ndarray:
    """Order of the pairs in an epoch: a pure function of seed and epoch, alike for every variant."""
    return np.random.default_rng([seed, epoch]).permutation(pairs)


def batch_at(step: int, batch: int, pairs: int, seed: int) -> list[int]:
    """Indices of the pairs of a step; epochs follow each other without a gap, so that every batch is full."""
    first = step * batch
    return [int(order(seed, place // pairs, pairs)[place % pairs]) for place in range(first, first + batch)]


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
        cost: passes and memory, from `dpobench.cost.paid`.
    """

    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    checks: dict[str, float | None] = field(default_factory=dict)
    flags: list[str] = field(default_factory=list)
    layout: str = ""
    cost: dict[str, int | None] = field(default_factory=dict)


def accelerator_for(device: str, precision: str) -> Any:
    """Accelerate's device, precision and collectives; its data loading and state files are not used."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import InitProcessGroupKwargs

    mixed = "bf16" if precision == "bf16" else "no"
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != mixed:
        AcceleratorState._reset_state(reset_partial_state=False)
    # The first process prepares and scores while the others wait in a collective: longer than the defaults allow.
    patience = InitProcessGroupKwargs(timeout=timedelta(days=7))
    accelerator = Accelerator(cpu=device == "cpu", mixed_precision=mixed, kwargs_handlers=[patience])
    if accelerator.device.type != device.partition(":")[0]:
        raise UserError(
            f"{device} was asked for, this process sees {accelerator.device.type}; check CUDA_VISIBLE_DEVICES"
        )
    return accelerator


def prepared(policy: Any, accelerator: Any, recipe: Recipe) -> tuple[Any, torch.optim.AdamW]:
    """A policy in float32, which stays the master copy in bf16 too, made ready for the processes, with its optimizer."""
    if recipe.recompute_activations:
        recompute(policy)
    optimizer = torch.optim.AdamW(
        policy.parameters(), lr=0.0, betas=(0.9, 0.999), eps=1e-8, weight_decay=recipe.weight_decay, fused=True
    )
    return accelerator.prepare(policy, optimizer)


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
    first, told, log, beside = states.resumed(saving, model, optimizer, accelerator, beside)
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
        log.append(_log_row(step, seen, norm, rate, bound, time.monotonic() - began))
        _require_finite(log, target, accelerator)
        _advance(optimizer, rate)
        if beside.moves and (step + 1) % recipe.reference_every == 0:
            move(beside.reference, accelerator.unwrap_model(model), recipe.reference_mix)
        _spend(result, log[-1], began, seen, accelerator.device, again=beside.moves and step >= recipe.reference_every)
        states.keep(saving, step + 1, model, start, accelerator)
        progress(log[-1])
        note = {"step": step + 1, "log": log, "result": asdict(result)}
        saved = states.save(saving, saved, model, optimizer, beside, note, accelerator)
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
    moves, live = run.recipe.reference_every > 0 and bound.variant.declared["reference"], None
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
    torch.manual_seed(int(store.digest("step", run.seed, step), 16))
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
            _write_log(target, log, accelerator)
            raise Diverged(log[-1]["step"], what)


def _steps(recipe: Recipe, pairs: int, world: int) -> int:
    """Optimizer steps of a training, if the batch suits the data and the processes."""
    batch = recipe.batch
    if batch % world:
        raise UserError(f"recipe.batch = {batch} does not divide among {world} processes; choose a multiple of {world}")
    if pairs < batch:
        raise UserError(f"recipe.batch = {batch}, but there are {pairs} training pairs; choose a smaller batch")
    return recipe.steps(pairs)


def check_start(
    model: Any, bound: Bound, rows: Sequence[TokenPair], accelerator: Any, beside: Beside | None = None
) -> dict[str, float | None]:
    """Before the first step the policy is the reference: log-ratios are 0 and the loss has its start value.

    Returns: `start_margin` (largest margin per token, nats), `start_loss`, `start_declared`.

    Raises:
        DpobenchError: they are not; the reference's log-probabilities belong to something else.
    """
    with torch.no_grad(), accelerator.autocast():
        beside = beside or Beside()
        block = block_of(rows, bound, accelerator.device, packed=beside.packed)
        values = values_of(model, block, bound, beside.reference)
        pairs = pairs_of(values, block, bound.update(pairs_of(values, block), bound.initial()))
        loss, expected = float(bound(pairs).mean()), float(bound(started(bound, pairs)).mean())
    slack = 2e-5 if run_precision(accelerator) == "float32" else 5e-2
    lengths = pairs.chosen.length + pairs.rejected.length
    margin = float((pairs.margin.abs() / lengths).max())
    # Both sides may be off by the same amount, which no margin shows.
    drift = float(((pairs.chosen.logratio.abs() + pairs.rejected.logratio.abs()) / lengths).max())
    declared = bound.start
    if not drift <= slack:
        raise DpobenchError(
            f"at step 0 a log-ratio is {drift:.3g} nats a token, not 0: the reference log-probabilities are not this model's"
        )
    moved = _tolerance(bound, pairs, slack)
    for name, value in (("its value at policy = reference", expected), ("its declared start", declared)):
        if value is not None and not abs(loss - value) <= moved:
            raise DpobenchError(f"at step 0 {bound.variant.name} is {loss:.6g}; {name} is {value:.6g}")
    return {"start_margin": margin, "start_loss": loss, "start_declared": declared}


def run_precision(accelerator: Any) -> str:
    """Precision of the arithmetic."""
    return "bf16" if accelerator.mixed_precision == "bf16" else "float32"


def _tolerance(bound: Bound, pairs: Pairs, slack: float) -> float:
    """How far the loss may move when every token's log-probability moves by `slack`."""
    start = started(bound, pairs)
    with torch.enable_grad():
        slopes = torch.autograd.grad(
            bound(start).mean(), (start.chosen.policy, start.rejected.policy), allow_unused=True
        )
    return 1e-5 + slack * sum(float(slope.abs().sum()) for slope in slopes if slope is not None)


def _log_row(step: int, seen: Step, norm: float, rate: float, bound: Bound, seconds: float) -> dict[str, Any]:
    """One line of the log: means over the global batch, gathered over processes and micro-batches."""
    values = {name: value.double().cpu() for name, value in seen.values.items()}
    margin, mean = values["margin"], {name: float(value.mean()) for name, value in values.items()}
    factor = float(bound.params[bound.variant.strength]) if bound.variant.unit == "nat" else 1.0
    statistics = {f"statistic_{name}": value for name, value in seen.statistics.items()}
    return statistics | {
        "step": step,
        "loss": mean["loss"],
        "margin": mean["margin"],
        "accuracy": float((margin > 0).double().mean()),
        "ties": float((margin == 0).double().mean()),
        "reward_chosen": factor * mean["chosen_logratio"],
        "reward_rejected": factor * mean["rejected_logratio"],
        "reward_beta": factor,
        "chosen_logp": mean["chosen_logp"],
        "rejected_logp": mean["rejected_logp"],
        "chosen_logratio": mean["chosen_logratio"],
        "rejected_logratio": mean["rejected_logratio"],
        "gradient_norm": norm,
        "learning_rate": rate,
        "saturation": float((values["slope"] < 0.01 * values["slope_at_start"]).double().mean()),
        "tokens": seen.tokens,
        "tokens_per_s": round(seen.tokens / max(seconds, 1e-9), 1),
    }


def flags(log: Sequence[dict[str, Any]], clip: float) -> list[str]:
    """What a reader of the report should know about a training, in words."""
    found = []
    clipped = sum(row["gradient_norm"] > clip for row in log) / len(log)
    if clipped > 0.9:
        found.append(
            f"gradient clipped at {clipped:.0%} of the steps: the learning rate, not the loss, set the step size"
        )
    if log[-1]["loss"] > 10 * abs(log[0]["loss"]) + 1:
        found.append(f"loss rose from {log[0]['loss']:.3g} to {log[-1]['loss']:.3g}: unstable")
    tail = log[-max(1, len(log) // 5) :]
    if np.mean([row["saturation"] for row in tail]) > 0.5:
        found.append(
            "more than half the pairs were saturated (pull below 1 % of its start) in the last fifth of the steps"
        )
    if np.mean([row["chosen_logratio"] for row in tail]) < -1.0:
        found.append("the likelihood of chosen answers fell below the reference's")
    return found


def _finish(
    model: Any, start: Path, target: Path, log: list[dict[str, Any]], accelerator: Any, result: Trained
) -> Trained:
    result.steps, result.tokens = len(log), sum(row["tokens"] for row in log)
    if accelerator.is_main_process:
        _write_log(target, log, accelerator)
        tokenizer = checkpoint.load_tokenizer(start)
        # Without the autocast that `prepare` laid around it, the model answers in float32, as it will when loaded again.
        bare = accelerator.unwrap_model(model, keep_fp32_wrapper=False)
        result.checks["reload_max_difference"] = checkpoint.save(bare, tokenizer, target / "checkpoint")
    accelerator.wait_for_everyone()
    return result


def _write_log(target: Path, log: list[dict[str, Any]], accelerator: Any) -> None:
    if accelerator.is_main_process:
        store.write_bytes(target / "log.jsonl", "".join(json.dumps(row) + "\n" for row in log).encode())
