"""A whole sweep in CPU seconds: one `dpobench run` against what does the same cells today.

The other side is, for each cell, a process that trains with TRL's DPOTrainer (its best batch per device, reference precomputed), one
of lm-eval's command line on the checkpoint, and one that samples: same start policy, pairs, order, steps, rates, tasks and number of
answers. Our side also measures divergences, held-out accuracy and win-rates and writes a report; theirs does not. The start policy
and its data are made before either side begins.
"""

import importlib.util
import json
import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import time
import tomllib
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from dpobench.artifacts.files import cache_folder, read_json, write_bytes, write_json
from dpobench.artifacts.records import RunRecord
from dpobench.errors import DpobenchError, UserError
from dpobench.evaluation.plan import SAMPLES
from dpobench.evaluation.settings import Evaluation
from dpobench.experiment import options
from dpobench.experiment.config import parse
from dpobench.sweep.events import Event, PartBegun, StepTaken
from dpobench.sweep.job import execute, is_done
from dpobench.sweep.plan import Machine, plan_jobs
from dpobench.sweep.workers import import_all, quiet
from dpobench.synthetic import embedded
from dpobench.training.order import batch_at
from dpobench.training.run import Recipe

GRID, PEER = Path(__file__).with_name("sweep.toml"), Path(__file__).with_name("peer.py")
PARTS, SEED = ("train", "lm_eval", "sampling"), 0
# How far a step's mean loss may lie from TRL's, relative to the loss at the start: float32 over the steps of a run, no more.
AGREEMENT = 1e-4


@dataclass(frozen=True)
class Cell:
    """One run of the grid: a variant, its strength, and how TRL's configuration says the same."""

    variant: str
    beta: float
    trl: Mapping[str, Any]


@dataclass(frozen=True)
class Task:
    """What both sides are given.

    Args:
        preset: name of the embedded default.
        longer: another, whose runs are as long as the demo's.
        cells: the grid.
        further: values for the first variant that come later.
        micro_batches: TRL's batches per device that are tried.
        recipe: how each cell is trained.
        evaluation: how it is scored.
    """

    preset: str
    longer: str
    cells: tuple[Cell, ...]
    further: tuple[float, ...]
    micro_batches: tuple[int, ...]
    recipe: Recipe
    evaluation: Evaluation

    def grids(self, further: int = 0) -> dict[str, list[float]]:
        """Strengths by variant, the first with so many of its later values."""
        found: dict[str, list[float]] = {}
        for cell in self.cells:
            found.setdefault(cell.variant, []).append(cell.beta)
        found[self.cells[0].variant] += self.further[:further]
        return found


def task(cells: int | None = None) -> Task:
    """Read the grid; `cells` keeps the first so many."""
    told = tomllib.loads(GRID.read_text(encoding="utf-8"))
    every = [Cell(one["name"], beta, one["trl"]) for one in told["variants"] for beta in one["betas"]]
    preset = parse(options.preset(told["preset"]))
    recipe, evaluation = preset.recipe, preset.evaluation
    batches = [number for number in told["micro_batches"] if recipe.batch % number == 0]
    return Task(
        told["preset"], told["longer"], tuple(every[:cells]), tuple(told["further"]), tuple(batches), recipe, evaluation
    )


def our_command(asked: Task, out: Path, further: int = 0) -> list[str]:
    """The command line of our side; one run at a time, one thread."""
    grids = asked.grids(further)
    betas = [part for name, values in grids.items() for part in ("--beta-grid", f"{name}={_listed(values)}")]
    narrow = ["--seeds", str(SEED), "--device", "cpu", "--workers", "1", "--threads", "1", "--out", str(out)]
    run = [sys.executable, "-m", "dpobench", "run", "--preset", asked.preset, "--variants", ",".join(grids)]
    return [*run, *betas, *narrow]


def _listed(values: Sequence[float]) -> str:
    return ",".join(f"{value:g}" for value in values)


def peer_command(part: str, arguments: Mapping[str, Any], file: Path) -> list[str]:
    """The command line of a script of the other side; its arguments are written to a file."""
    write_json(file, dict(arguments))
    # Without -P the folder of the script, which is ours, would be searched for imports.
    return [sys.executable, "-P", str(PEER), part, str(file)]


def lm_eval_command(checkpoint: Path, world: Path, asked: Task, target: Path) -> list[str]:
    """lm-eval's own command line on a checkpoint."""
    told = {
        "--model": "hf",
        "--model_args": f"pretrained={checkpoint},dtype=float32",
        "--tasks": ",".join(asked.evaluation.tasks),
        "--include_path": world / "tasks",
        "--batch_size": 16,
        "--device": "cpu",
        "--output_path": target,
    }
    return [sys.executable, "-P", "-m", "lm_eval", "run", *(str(part) for pair in told.items() for part in pair)]


def configuration(cell: Cell, recipe: Recipe, steps: int, micro_batch: int) -> dict[str, Any]:
    """What TRL's configuration is told beside its defaults."""
    return {
        **cell.trl,
        "beta": cell.beta,
        "per_device_train_batch_size": micro_batch,
        "gradient_accumulation_steps": recipe.batch // micro_batch,
        "max_steps": steps,
        "max_grad_norm": recipe.clip,
        "max_length": recipe.max_tokens,
        "precompute_ref_log_probs": True,
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": True,
        "train_sampling_strategy": "sequential",
        "save_strategy": "no",
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
    }


def cpu_seconds(command: Sequence[str], log: Path) -> float:
    """Run a command with one thread and nothing from the network. Returns: CPU seconds of it and its children, imports included.

    Raises:
        DpobenchError: it failed; the last line it wrote is told.
    """
    alone = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    own = {
        "DPOBENCH_CACHE": str(cache_folder().resolve()),
        "HF_DATASETS_CACHE": str(log.parent.resolve() / "datasets"),
    }
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with log.open("wb") as stream:
        ended = subprocess.run(
            list(command), stdout=stream, stderr=subprocess.STDOUT, env=dict(os.environ) | alone | own, check=False
        )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if ended.returncode:
        said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["nothing"]
        raise DpobenchError(f"{' '.join(command[:5])} ... ended with status {ended.returncode}; it said: {said[-1]}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@dataclass(frozen=True)
class _Peer:
    """The other side's cells, in a folder beside our experiment."""

    asked: Task
    ours: Path
    folder: Path

    @property
    def steps(self) -> int:
        return self.asked.recipe.steps(self._lines)

    @property
    def _lines(self) -> int:
        return len((self.ours / "world" / "train.jsonl").read_text(encoding="utf-8").splitlines())

    def write_pairs(self) -> None:
        """The pairs, in the order in which our runs read them."""
        lines = (self.ours / "world" / "train.jsonl").read_text(encoding="utf-8").splitlines()
        batch = self.asked.recipe.batch
        order = [at for step in range(self.steps) for at in batch_at(step, batch, len(lines), SEED)]
        write_bytes(self.folder / "pairs.jsonl", "".join(f"{lines[at]}\n" for at in order).encode())

    def train(self, cell: Cell, micro_batch: int) -> float:
        recipe, place = self.asked.recipe, self.place(cell)
        arguments = {
            "model": str(self.ours / "world" / "model"),
            "pairs": str(self.folder / "pairs.jsonl"),
            "target": str(place / "checkpoint"),
            "told": configuration(cell, recipe, self.steps, micro_batch),
            "rates": [recipe.rate(step, self.steps, recipe.learning_rate) for step in range(self.steps)],
            "weight_decay": recipe.weight_decay,
            "log": str(place / "log.json"),
        }
        return cpu_seconds(peer_command("train", arguments, place / "train.json"), self.folder / "train.log")

    def evaluate(self, cell: Cell) -> float:
        place = self.place(cell)
        command = lm_eval_command(place / "checkpoint", self.ours / "world", self.asked, place / "lm_eval")
        return cpu_seconds(command, self.folder / "lm_eval.log")

    def sample(self, cell: Cell) -> float:
        place, evaluation = self.place(cell), self.asked.evaluation
        arguments = {
            "model": str(place / "checkpoint"),
            "prompts": str(self.ours / "world" / "prompts.jsonl"),
            "target": str(place / "answers.jsonl"),
            "batch": evaluation.batch,
            "draws": evaluation.draws,
            "max_new_tokens": evaluation.max_new_tokens,
        }
        return cpu_seconds(peer_command("sample", arguments, place / "sample.json"), self.folder / "sample.log")

    def place(self, cell: Cell) -> Path:
        return self.folder / f"{cell.variant}-{cell.beta:g}"


def disagreement(asked: Task, ours: Path, theirs: Path) -> float:
    """Largest difference of a step's mean loss between the sides, over all cells, relative to the loss at the start.

    Raises:
        DpobenchError: it is more than rounding, or the sides differ in their tokens, steps or answers: not the same work.
    """
    runs = {}
    for file in (ours / "runs").glob("*/run.json"):
        record = RunRecord.read(file.parent)
        runs[record.variant, record.beta] = (file.parent, record)
    worst = 0.0
    for cell in asked.cells:
        folder, record = runs[cell.variant, cell.beta]
        place = theirs / f"{cell.variant}-{cell.beta:g}"
        log = [row for row in read_json(place / "log.json") if "loss" in row]
        own = [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
        answers = len((place / "answers.jsonl").read_text(encoding="utf-8").splitlines())
        counts = (record.tokens, len(own), pq.read_metadata(folder / SAMPLES).num_rows)
        others = (int(log[-1]["num_tokens"]), len(log), answers)
        if counts != others:
            raise DpobenchError(f"{place.name}: tokens, steps and answers are {counts}, on TRL's side {others}")
        apart = max(abs(a - row["loss"]) for a, row in zip(own, log, strict=True)) / abs(own[0])
        if not apart <= AGREEMENT:
            raise DpobenchError(
                f"{place.name}: a step's loss differs from TRL's by {apart:.2g} of the loss at the start"
            )
        worst = max(worst, apart)
    return worst


def share(began: float, marks: Sequence[tuple[float, Event]]) -> float:
    """A run's own work without its evaluation, over its bare training.

    Args:
        began: the CPU clock when the run was begun, seconds.
        marks: the clock at each event of the run.

    Returns: CPU seconds from the beginning to the first event of the scoring (the start policy is loaded, the layout probed, step 0
        checked, the checkpoint saved, read again and published), over those of the steps. The first step, whose beginning no event
        tells, counts as its tokens at the rate of the others.
    """
    steps = [(at, event.tokens) for at, event in marks if isinstance(event, StepTaken)]
    scored = next(at for at, event in marks if isinstance(event, PartBegun))
    tokens = [number for _, number in steps]
    bare = (steps[-1][0] - steps[0][0]) * sum(tokens) / sum(tokens[1:])
    return float((scored - began) / bare)


def _shares(out: Path, preset: str, grids: Mapping[str, Sequence[float]]) -> list[float]:
    """Body of a fresh process, made ready as a worker is: do what is missing of an experiment; the share of each run, in order."""
    betas = [f"{name}={_listed(values)}" for name, values in grids.items()]
    told = options.Options(variants=list(grids), beta_grid=betas, seeds=(SEED,), preset=preset)
    from rich.console import Console

    quiet(1)
    import_all()
    jobs = plan_jobs(told.experiment()[0], out, Machine("cpu", 1, 1, cache_folder()), Console(quiet=True))
    found = []
    for job in [job for job in jobs if not is_done(job)]:
        marks: list[tuple[float, Event]] = []
        began = time.process_time()
        execute(job, lambda event, marks=marks: marks.append((time.process_time(), event)))  # type: ignore[misc]
        found.append(share(began, marks))
    return found


def marginal(asked: Task, ours: Path, folder: Path) -> dict[str, float]:
    """What one more grid point costs.

    Returns: `marginal_run_ratio`: the median `share` of runs of the demo's size in a worker that has done one before them (in a
        sweep, too, a further point goes to a worker that is warm); `marginal_run_ratio_tiny`: the same at the size of the sweep, whose
        runs last a second; `extra_cpu_seconds`: of the whole command given again with one more value, its imports, checks, evaluation
        and report included.
    """
    again = cpu_seconds(our_command(asked, ours, 1), folder / "again.log")
    first = asked.cells[0].variant
    cases: dict[str, tuple[Path, str, Mapping[str, Sequence[float]]]] = {
        "marginal_run_ratio": (folder / "longer", asked.longer, {first: asked.further[:3]}),
        "marginal_run_ratio_tiny": (ours, asked.preset, asked.grids(len(asked.further))),
    }
    found = {"extra_cpu_seconds": round(again, 1)}
    for name, given in cases.items():
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            _, *shares = pool.submit(_shares, *given).result()
        found[name] = round(statistics.median(shares), 3)
    return found


def run(folder: Path, cells: int | None = None) -> Generator[str, None, dict[str, Any]]:
    """Run both sides, and yield lines as they come.

    Args:
        folder: an empty folder, where both sides write.
        cells: only the first so many of the grid; the row says how many there were.

    Returns: the row. `cpu_seconds` and `trl_cpu_seconds`: user and system time of all processes of a side, imports included;
        `trl_parts`: theirs by part; `sweep_ratio`: theirs over ours; and what `marginal` found.

    Raises:
        UserError: TRL or lm-eval is not installed.
        DpobenchError: a process failed, or the sides did not do the same work.
    """
    for name, extra in (("trl", "[parity]"), ("lm_eval", "")):
        if importlib.util.find_spec(name) is None:
            raise UserError(f"the sweep is compared with {name}, which is not installed; pip install 'dpobench{extra}'")
    asked, ours, theirs = task(cells), folder / "ours", folder / "theirs"
    theirs.mkdir(parents=True)
    embedded.build(parse(options.preset(asked.preset)).world, cache_folder())
    own = cpu_seconds(our_command(asked, ours), folder / "ours.log")
    yield f"one run of {len(asked.cells)} cells: {own:.1f} CPU seconds"
    peer = _Peer(asked, ours, theirs)
    peer.write_pairs()
    parts, best = dict.fromkeys(PARTS, 0.0), asked.micro_batches[0]
    for number, cell in enumerate(asked.cells):
        tried = {size: peer.train(cell, size) for size in ([best] if number else asked.micro_batches)}
        best = min(tried, key=lambda size: tried[size])
        spent = dict(zip(PARTS, (tried[best], peer.evaluate(cell), peer.sample(cell)), strict=True))
        parts = {name: parts[name] + spent[name] for name in PARTS}
        told = ", ".join(f"{name} {seconds:.1f}" for name, seconds in spent.items())
        yield f"{cell.variant} {cell.beta:g}: TRL at batch {best}, {told} CPU seconds"
    apart = disagreement(asked, ours, theirs)
    further = marginal(asked, ours, folder)
    total = sum(parts.values())
    row = {
        "work": "sweep",
        "dtype": "float32",
        "cells": len(asked.cells),
        "cpu_seconds": round(own, 1),
        "trl_cpu_seconds": round(total, 1),
        "trl_parts": {name: round(seconds, 1) for name, seconds in parts.items()},
        "trl_batch": best,
        "sweep_ratio": round(total / own, 2),
        **further,
        "loss_difference": apart,
    }
    yield (
        f"{total:.1f} CPU seconds in {3 * len(asked.cells)} processes, {row['sweep_ratio']} times ours; one more grid point of the "
        f"demo's size costs a warm worker {row['marginal_run_ratio']} of its bare training, of this size "
        f"{row['marginal_run_ratio_tiny']}, as a command of its own {row['extra_cpu_seconds']} CPU seconds in all"
    )
    return row


def measure(folder: Path, cells: int | None = None) -> dict[str, Any]:
    """The row of `run`, without its lines."""
    lines = run(folder, cells)
    while True:
        try:
            next(lines)
        except StopIteration as ended:
            return dict(ended.value)
