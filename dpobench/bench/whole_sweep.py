"""A whole sweep in CPU seconds: one `dpobench run` against scripts around TRL and lm-eval that do the same.

The other side has three processes for each grid point: one trains with TRL's DPOTrainer (its fastest batch per device, reference
precomputed), one is lm-eval's command line on the checkpoint, and one samples. Start policy, pairs, order, steps, rates, tasks and
number of answers are the same. Our side also measures divergences, held-out accuracy and win-rates and writes a report; the other does
not. The start policy and its data are made before either side begins.
"""

import importlib.util
import json
import multiprocessing
import statistics
import time
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypedDict

import pyarrow.parquet as pq

from dpobench.artifacts.files import cache_folder, read_json, write_bytes
from dpobench.artifacts.records import RunRecord
from dpobench.bench.sweep_spec import (
    SEED,
    GridPoint,
    SweepSpec,
    comma_separated,
    configuration,
    cpu_seconds,
    lm_eval_command,
    our_command,
    read_spec,
    script_command,
)
from dpobench.errors import DpobenchError, UserError
from dpobench.evaluation.plan import SAMPLES
from dpobench.experiment import options
from dpobench.experiment.config import parse
from dpobench.sweep.events import Event, PartBegun, StepTaken
from dpobench.sweep.job import execute, is_done
from dpobench.sweep.plan import Machine, plan_jobs
from dpobench.sweep.workers import import_all, quiet
from dpobench.synthetic import embedded
from dpobench.training.order import batch_at

PARTS = ("train", "lm_eval", "sampling")
# How far a step's mean loss may differ from TRL's, relative to the loss at the start: rounding of float32 over the steps of a run.
AGREEMENT = 1e-4


@dataclass(frozen=True)
class _TrlSweep:
    """The other side; each method returns the CPU seconds of its process.

    Args:
        spec: the sweep.
        ours: folder of our experiment, with start policy and data.
        folder: of this side, with a folder for each grid point.
    """

    spec: SweepSpec
    ours: Path
    folder: Path

    @cached_property
    def _lines(self) -> list[str]:
        return (self.ours / "world" / "train.jsonl").read_text(encoding="utf-8").splitlines()

    @property
    def steps(self) -> int:
        return self.spec.recipe.steps(len(self._lines))

    def write_pairs(self) -> None:
        """Write the pairs in the order in which our runs read them."""
        batch = self.spec.recipe.batch
        order = [index for step in range(self.steps) for index in batch_at(step, batch, len(self._lines), SEED)]
        write_bytes(self.folder / "pairs.jsonl", "".join(f"{self._lines[index]}\n" for index in order).encode())

    def train(self, point: GridPoint, micro_batch: int) -> float:
        recipe, place = self.spec.recipe, self.folder / point.name
        arguments = {
            "model": str(self.ours / "world" / "model"),
            "pairs": str(self.folder / "pairs.jsonl"),
            "target": str(place / "checkpoint"),
            "configuration": configuration(point, recipe, self.steps, micro_batch),
            "rates": [recipe.rate(step, self.steps, recipe.learning_rate) for step in range(self.steps)],
            "weight_decay": recipe.weight_decay,
            "log": str(place / "log.json"),
        }
        return cpu_seconds(script_command("train", arguments, place / "train.json"), self.folder / "train.log")

    def evaluate(self, point: GridPoint) -> float:
        place = self.folder / point.name
        command = lm_eval_command(place / "checkpoint", self.ours / "world", self.spec, place / "lm_eval")
        return cpu_seconds(command, self.folder / "lm_eval.log")

    def sample(self, point: GridPoint) -> float:
        place, evaluation = self.folder / point.name, self.spec.evaluation
        arguments = {
            "model": str(place / "checkpoint"),
            "prompts": str(self.ours / "world" / "prompts.jsonl"),
            "target": str(place / "answers.jsonl"),
            "batch": evaluation.batch,
            "draws": evaluation.draws,
            "max_new_tokens": evaluation.max_new_tokens,
        }
        return cpu_seconds(script_command("sample", arguments, place / "sample.json"), self.folder / "sample.log")


def loss_difference(spec: SweepSpec, ours: Path, trl: Path) -> float:
    """Largest difference of a step's mean loss between the sides, over all grid points, relative to the loss at the start.

    Args:
        spec: the sweep.
        ours: folder of our experiment.
        trl: folder of the other side.

    Raises:
        DpobenchError: it is more than rounding, or the sides differ in their tokens, steps or answers: not the same work.
    """
    runs = {}
    for file in (ours / "runs").glob("*/run.json"):
        record = RunRecord.read(file.parent)
        runs[record.variant, record.beta] = (file.parent, record)
    worst = 0.0
    for point in spec.points:
        folder, record = runs[point.variant, point.beta]
        trl_log = [row for row in read_json(trl / point.name / "log.json") if "loss" in row]
        losses = [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
        trl_answers = len((trl / point.name / "answers.jsonl").read_text(encoding="utf-8").splitlines())
        counts = (record.tokens, len(losses), pq.read_metadata(folder / SAMPLES).num_rows)
        trl_counts = (int(trl_log[-1]["num_tokens"]), len(trl_log), trl_answers)
        if counts != trl_counts:
            raise DpobenchError(f"{point.name}: tokens, steps and answers are {counts}, on TRL's side {trl_counts}")
        difference = max(abs(loss - row["loss"]) for loss, row in zip(losses, trl_log, strict=True)) / abs(losses[0])
        if not difference <= AGREEMENT:
            raise DpobenchError(
                f"{point.name}: a step's loss differs from TRL's by {difference:.2g} of the loss at the start"
            )
        worst = max(worst, difference)
    return worst


@dataclass(frozen=True)
class Mark:
    """The CPU clock at an event of a run.

    Args:
        seconds: of the clock.
        event: what the run reported then.
    """

    seconds: float
    event: Event


def overhead(began: float, marks: Sequence[Mark]) -> float:
    """CPU time of a run without its evaluation, over that of its training steps alone.

    The first part goes from the beginning to the first event of the scoring: the start policy is loaded, the layout probed, step 0
    checked, the checkpoint saved, read again and published. The beginning of the first step is no event, so that step counts as its
    tokens at the rate of the others.

    Args:
        began: the CPU clock when the run was begun, seconds.
        marks: the clock at the events of the run.

    Example:
        >>> ends = ((11.0, 100), (12.0, 100), (13.5, 150))
        >>> marks = [Mark(at, StepTaken("run", step, 3, 0.5, 0.5, 0.0, tokens, 1.0)) for step, (at, tokens) in enumerate(ends)]
        >>> marks.append(Mark(14.0, PartBegun("run", "sampling")))
        >>> round(overhead(10.0, marks), 3)
        1.143
    """
    steps = [(mark.seconds, mark.event.tokens) for mark in marks if isinstance(mark.event, StepTaken)]
    scored = next(mark.seconds for mark in marks if isinstance(mark.event, PartBegun))
    tokens = [number for _, number in steps]
    bare = (steps[-1][0] - steps[0][0]) * sum(tokens) / sum(tokens[1:])
    return (scored - began) / bare


def _overheads(out: Path, preset: str, grids: Mapping[str, Sequence[float]]) -> list[float]:
    """Body of a fresh process that is prepared as a worker: do the missing runs of an experiment; their overheads, in order."""
    betas = [f"{name}={comma_separated(values)}" for name, values in grids.items()]
    experiment, _ = options.Options(variants=list(grids), beta_grid=betas, seeds=(SEED,), preset=preset).experiment()
    from rich.console import Console

    quiet(1)
    import_all()
    jobs = plan_jobs(experiment, out, Machine("cpu", 1, 1, cache_folder()), Console(quiet=True))
    overheads = []
    for job in [job for job in jobs if not is_done(job)]:
        marks: list[Mark] = []

        def mark(event: Event, marks: list[Mark] = marks) -> None:
            marks.append(Mark(time.process_time(), event))

        began = time.process_time()
        execute(job, mark)
        overheads.append(overhead(began, marks))
    return overheads


class MarginalCost(TypedDict):
    """What one more grid point costs.

    `extra_cpu_seconds`: of the whole command, given again with one more value of beta: its imports, checks, evaluation and report
    included. `marginal_run_ratio`: median `overhead` of runs of the demo's size in a worker that has done one before them, as a
    worker in a sweep has. `marginal_run_ratio_tiny`: the same at the size of the sweep, whose runs last a second.
    """

    extra_cpu_seconds: float
    marginal_run_ratio: float
    marginal_run_ratio_tiny: float


class SweepRow(MarginalCost):
    """The row of a whole sweep in the JSON file.

    `cpu_seconds` and `trl_cpu_seconds`: user and system time of all processes of a side, imports included. `trl_parts`: the other
    side's by part. `sweep_ratio`: the other side's over ours. `cells`: number of grid points.
    """

    work: str
    dtype: str
    cells: int
    cpu_seconds: float
    trl_cpu_seconds: float
    trl_parts: dict[str, float]
    trl_batch: int
    sweep_ratio: float
    loss_difference: float


def marginal_cost(spec: SweepSpec, ours: Path, folder: Path) -> MarginalCost:
    """Measure what one more grid point costs.

    Args:
        spec: the sweep.
        ours: folder of our finished experiment; it gets more runs.
        folder: where a longer experiment is written.
    """
    first = spec.points[0].variant

    def median_overhead(out: Path, preset: str, grids: Mapping[str, Sequence[float]]) -> float:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            _, *overheads = pool.submit(_overheads, out, preset, grids).result()
        return round(statistics.median(overheads), 3)

    return {
        "extra_cpu_seconds": round(cpu_seconds(our_command(spec, ours, 1), folder / "again.log"), 1),
        "marginal_run_ratio": median_overhead(folder / "longer", spec.longer, {first: spec.further[:3]}),
        "marginal_run_ratio_tiny": median_overhead(ours, spec.preset, spec.grids(len(spec.further))),
    }


def run(folder: Path, points: int | None = None) -> Generator[str, None, SweepRow]:
    """Run both sides, and yield lines as they come.

    Args:
        folder: an empty folder, where both sides write.
        points: number of grid points, the first ones; None for all.

    Yields: lines of text.

    Returns: the row.

    Raises:
        UserError: TRL or lm-eval is not installed.
        DpobenchError: a process failed, or the sides did not do the same work.
    """
    for name, extra in (("trl", "[parity]"), ("lm_eval", "")):
        if importlib.util.find_spec(name) is None:
            raise UserError(f"the sweep is compared with {name}, which is not installed; pip install 'dpobench{extra}'")
    spec, ours, trl = read_spec(points), folder / "ours", folder / "trl"
    trl.mkdir(parents=True)
    embedded.build(parse(options.preset(spec.preset)).world, cache_folder())
    our_seconds = cpu_seconds(our_command(spec, ours), folder / "ours.log")
    yield f"one run of {len(spec.points)} cells: {our_seconds:.1f} CPU seconds"
    trl_sweep = _TrlSweep(spec, ours, trl)
    trl_sweep.write_pairs()
    parts, best = dict.fromkeys(PARTS, 0.0), spec.micro_batches[0]
    for number, point in enumerate(spec.points):
        tried = {size: trl_sweep.train(point, size) for size in ([best] if number else spec.micro_batches)}
        best = min(tried, key=lambda size: tried[size])
        seconds = dict(zip(PARTS, (tried[best], trl_sweep.evaluate(point), trl_sweep.sample(point)), strict=True))
        parts = {name: parts[name] + seconds[name] for name in PARTS}
        by_part = ", ".join(f"{name} {value:.1f}" for name, value in seconds.items())
        yield f"{point.variant} {point.beta:g}: TRL at batch {best}, {by_part} CPU seconds"
    difference = loss_difference(spec, ours, trl)
    total = sum(parts.values())
    row: SweepRow = {
        "work": "sweep",
        "dtype": "float32",
        "cells": len(spec.points),
        "cpu_seconds": round(our_seconds, 1),
        "trl_cpu_seconds": round(total, 1),
        "trl_parts": {name: round(value, 1) for name, value in parts.items()},
        "trl_batch": best,
        "sweep_ratio": round(total / our_seconds, 2),
        **marginal_cost(spec, ours, folder),
        "loss_difference": difference,
    }
    yield (
        f"{total:.1f} CPU seconds in {3 * len(spec.points)} processes, {row['sweep_ratio']} times ours; one more grid point of the "
        f"demo's size costs a warm worker {row['marginal_run_ratio']} of its bare training, of this size "
        f"{row['marginal_run_ratio_tiny']}, as a command of its own {row['extra_cpu_seconds']} CPU seconds in all"
    )
    return row
