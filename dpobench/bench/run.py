"""Our training step against TRL's: same pairs, weights and optimizer, one process, one thread, taking turns.

Lengths follow three kinds of preference data, or the user's own. A figure is printed only after loss and gradient of the two sides
agreed on that very work.
"""

import contextlib
import gc
import importlib.util
import json
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from dpobench.artifacts.files import write_bytes
from dpobench.bench import memory, sweep
from dpobench.bench.sides import Ours, Theirs, disagreement, logistic_loss
from dpobench.bench.works import (
    HALF_BILLION,
    LARGER,
    SEVEN_BILLION,
    SMALL,
    WORKS,
    Shape,
    Work,
    draw_texts,
    llama,
    perturbed,
    work_of,
)
from dpobench.data.tokens import TokenPair
from dpobench.errors import DpobenchError, UserError
from dpobench.models.protocols import CausalLM
from dpobench.sweep.allocator import keep_pages
from dpobench.training.accelerate import accelerator_for

# How far loss and gradient may lie apart, relative: rounding of the arithmetic, by dtype.
AGREEMENT = {"float32": 5e-6, "bf16": 5e-2}


@dataclass(frozen=True)
class Case:
    """One model in one precision, and what it is measured on.

    Args:
        shape: of the model.
        precision: "float32" or "bf16".
        works: kinds of data.
        batches: TRL's batches per device; they divide the pairs of a step and hold 1 and 8.
    """

    shape: Shape
    precision: str
    works: tuple[Work, ...]
    batches: tuple[int, ...] = (1, 8)


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Args:
        pairs: of one step.
        repeats: timed steps of each side, after the one that is compared.
        cases: what.
        device: "cpu" or "cuda".
    """

    pairs: int
    repeats: int
    cases: tuple[Case, ...]
    device: str = "cpu"

    def on(self, works: tuple[Work, ...]) -> "Plan":
        """The same with other works throughout."""
        return replace(self, cases=tuple(replace(case, works=works) for case in self.cases))


FULL = Plan(
    8,
    5,
    (
        Case(SMALL, "float32", WORKS, (1, 4, 8)),
        Case(SMALL, "bf16", WORKS),
        Case(LARGER, "float32", WORKS[:1]),
        Case(LARGER, "bf16", WORKS[:1]),
    ),
)
QUICK = Plan(8, 3, (Case(SMALL, "float32", WORKS),))
GPU = Plan(
    16,
    5,
    (
        Case(HALF_BILLION, "bf16", WORKS, (1, 4, 8, 16)),
        Case(SEVEN_BILLION, "bf16", WORKS),
    ),
    "cuda",
)


def matmul_rate(tokens: int, precision: str, hidden: int = SMALL.hidden, device: str = "cpu") -> float:
    """Floating-point operations a second of (tokens x hidden x 4 hidden) in this process."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    left, right = (torch.randn(shape, dtype=dtype, device=device) for shape in ((tokens, hidden), (hidden, 4 * hidden)))
    left @ right
    return 2.0 * left.numel() * right.shape[1] / min(_seconds(lambda: left @ right) for _ in range(5))


def _seconds(action: Callable[[], Any]) -> float:
    """Wall time until all that an action started is done."""
    _finish()
    began = time.perf_counter()
    action()
    _finish()
    return time.perf_counter() - began


def _finish() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def floor_operations(model: CausalLM, rows: Sequence[TokenPair]) -> float:
    """Operations no exact step avoids: 6 per weight and token, a prompt once, the head at answers only, attention left out."""
    head, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    body = sum(weight.numel() for weight in model.parameters() if weight.ndim == 2) - head.numel()
    body -= 0 if embedding is head else embedding.numel()
    answers = sum(len(row.chosen) + len(row.rejected) for row in rows)
    return 6.0 * (body * _unique(rows) + head.numel() * answers)


def _unique(rows: Sequence[TokenPair]) -> int:
    return sum(len(row.prompt) + len(row.chosen) + len(row.rejected) for row in rows)


def _step(side: Ours | Theirs) -> None:
    side.accumulate()
    side.move()


def measure(work: Work, case: Case, plan: Plan, folder: Path) -> dict[str, Any]:
    """Time both sides on one kind of work.

    Args:
        work: the lengths.
        case: model, precision and TRL's batches.
        plan: how much of it, and where.
        folder: where TRL may write.

    Returns: a row of the table; ratios above 1 say how many times as fast as TRL we are.

    Raises:
        DpobenchError: loss or gradient of the two sides differ by more than rounding.
    """
    precision, device = case.precision, plan.device
    reference = llama(case.shape).to(device)
    policy, texts = perturbed(reference), draw_texts(work, plan.pairs, vocabulary=case.shape.vocabulary)
    # TRL takes accelerate's state as it finds it; ours sets the precision.
    accelerator_for(device, precision)
    told: dict[str, Any] = {"precision": precision, "device": device}
    rivals = {n: Theirs(policy, reference, texts, folder, micro_batch=n, **told) for n in case.batches}
    rows = rivals[1].pairs(reference)
    ours = Ours(policy, rows, logistic_loss(), **told)
    apart = disagreement(ours, list(rivals.values()))
    if not max(apart) <= AGREEMENT[precision]:
        raise DpobenchError(
            f"{work.name}, {precision}: loss and gradient differ from TRL's by {apart}; nothing is timed"
        )
    sides: dict[int, Ours | Theirs] = {0: ours, **rivals}
    taken: dict[int, list[float]] = {n: [] for n in sides}
    rates = []
    for _ in range(plan.repeats):
        rates.append(matmul_rate(_unique(rows), precision, case.shape.hidden, device))
        for n, side in sides.items():
            taken[n].append(_seconds(partial(_step, side)))
    seconds = {n: statistics.median(times) for n, times in taken.items()}
    floor = floor_operations(reference, rows) / statistics.median(rates)
    names = {
        "work": work.name,
        "model": case.shape.name,
        "dtype": precision,
        "layout": "packed" if ours.auxiliary.packed else "padded",
    }
    return names | _ratios(rows, seconds, apart) | {"floor_share": round(floor / seconds[0], 3)}


def _ratios(rows: Sequence[TokenPair], seconds: Mapping[int, float], apart: tuple[float, float]) -> dict[str, Any]:
    """Figures of a row. `seconds`: of a step, by TRL's batch; ours stands at 0."""
    own, theirs = seconds[0], {n: taken for n, taken in seconds.items() if n}
    best = min(theirs, key=lambda n: theirs[n])
    return {
        "tokens_per_s": round(sum(row.size for row in rows) / own, 1),
        "ratio_to_trl_best": round(theirs[best] / own, 3),
        "trl_best_batch": best,
        "ratio_to_trl_batch8": round(theirs[8] / own, 3),
        "seconds": round(own, 4),
        "trl_seconds": {str(n): round(taken, 4) for n, taken in theirs.items()},
        "loss_difference": apart[0],
        "gradient_difference": apart[1],
        "load_average": round(os.getloadavg()[0], 2),
    }


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """One thread, no tracker, no progress bar; environment, threads and log levels are put back."""
    import datasets
    import transformers

    before, threads, disabled = dict(os.environ), torch.get_num_threads(), logging.root.manager.disable
    os.environ |= {"TQDM_DISABLE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    torch.set_num_threads(1)
    # Both sides share the process, so TRL gains from it, too.
    keep_pages()
    logging.disable(logging.WARNING)
    datasets.disable_progress_bars()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        datasets.enable_progress_bars()
        transformers.logging.enable_progress_bar()
        logging.disable(disabled)
        torch.set_num_threads(threads)
        os.environ.clear()
        os.environ.update(before)


_COLUMNS = (
    ("work", "work", "<20"),
    ("model", "model", "<15"),
    ("dtype", "dtype", "<8"),
    ("tokens/s", "tokens_per_s", ">9.0f"),
    ("x TRL best", "ratio_to_trl_best", ">11.2f"),
    ("(batch)", "trl_best_batch", ">8"),
    ("x TRL batch 8", "ratio_to_trl_batch8", ">14.2f"),
    ("share of floor", "floor_share", ">15.2f"),
    ("memory / TRL's", "peak_memory_ratio", ">15.2f"),
    ("gradient apart", "gradient_difference", ">15.1e"),
    ("load", "load_average", ">6.1f"),
)


def run(target: Path | None, plan: Plan, *, data: Sequence[str] = (), whole_sweep: bool = False) -> Iterator[str]:
    """Measure, and yield the lines of a table as they come.

    Args:
        target: where the rows are written as JSON, too; None for nowhere.
        plan: how much is measured, and where.
        data: files of preference pairs whose lengths are measured instead of the plan's kinds.
        whole_sweep: compare a whole sweep of twelve runs, too.

    Raises:
        UserError: TRL is not installed, there is no such device, or a file cannot be read.
        DpobenchError: loss or gradient of the two sides differ.
    """
    if importlib.util.find_spec("trl") is None:
        raise UserError(
            "bench compares with TRL, which is not installed; pip install 'dpobench[parity]', or: make bench"
        )
    if plan.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--gpu: torch sees no CUDA device; leave --gpu out, or install a CUDA build of torch")
    rows: list[dict[str, Any]] = []
    plan = plan.on(tuple(map(work_of, data))) if data else plan
    yield (
        f"{plan.device}, one thread, {plan.pairs} pairs a step, medians of {plan.repeats} steps in turns; TRL "
        f"{version('trl')} with its reference precomputed; memory: of the step alone, against TRL's best batch"
    )
    yield "".join(f"{title:{form.split('.')[0]}}" for title, _, form in _COLUMNS)
    for case in plan.cases:
        for work in case.works:
            with _quiet(), tempfile.TemporaryDirectory(prefix="dpobench-bench-") as folder:
                rows.append(measure(work, case, plan, Path(folder)))
                batches = tuple(dict.fromkeys((rows[-1]["trl_best_batch"], 8)))
                _give_back()
                told = memory.compare(
                    work, case.precision, case.shape, pairs=plan.pairs, batches=batches, device=plan.device
                )
                rows[-1] |= told
            yield "".join(f"{rows[-1][key]:{form}}" for _, key, form in _COLUMNS)
            _write(target, rows)
    yield "x TRL: how many times as fast as TRL's step. Floor: least arithmetic of an exact step at this machine's matmul rate."
    if whole_sweep:
        with _quiet(), tempfile.TemporaryDirectory(prefix="dpobench-sweep-") as folder:
            rows.append((yield from sweep.run(Path(folder))))
        _write(target, rows)


def _give_back() -> None:
    """Return the device's memory to the processes that come next; trainers hold themselves in cycles."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _write(target: Path | None, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows so far: a bench that is stopped has lost nothing."""
    if target is not None:
        write_bytes(target, (json.dumps(rows, indent=1) + "\n").encode())
