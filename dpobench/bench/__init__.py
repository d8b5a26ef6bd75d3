"""Our training step against TRL's: same pairs, weights and optimizer, one process, one thread, taking turns.

Lengths follow three kinds of preference data, cut so that a core does all of it in minutes. A figure is printed only after loss
and gradient of the two sides agreed on that very work.
"""

import contextlib
import importlib.util
import json
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from dpobench import store
from dpobench.bench.sides import Ours, Theirs, disagreement, logistic_loss
from dpobench.bench.works import HIDDEN, LAYERS, VOCABULARY, WORKS, Work, draw_texts, perturbed, small_llama
from dpobench.errors import DpobenchError, UserError
from dpobench.tokens import TokenPair
from dpobench.train import accelerator_for

# How far loss and gradient may lie apart, relative: rounding of the arithmetic, by dtype.
AGREEMENT = {"float32": 5e-6, "bf16": 5e-2}


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Args:
        pairs: of one step.
        repeats: timed steps of each side, after the one that is compared.
        batches: TRL's batches per device; they divide the pairs and hold 1 and 8.
        precisions: works measured in each precision.
    """

    pairs: int
    repeats: int
    batches: tuple[int, ...]
    precisions: Mapping[str, tuple[Work, ...]]


FULL = Plan(16, 5, (1, 4, 8), MappingProxyType({"float32": WORKS, "bf16": WORKS[:1]}))
QUICK = Plan(8, 3, (1, 8), MappingProxyType({"float32": WORKS}))


def matmul_rate(tokens: int, precision: str) -> float:
    """Floating-point operations a second of (tokens x hidden x 4 hidden) in this process."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    left, right = torch.randn(tokens, HIDDEN, dtype=dtype), torch.randn(HIDDEN, 4 * HIDDEN, dtype=dtype)
    left @ right
    return 2.0 * left.numel() * right.shape[1] / min(_seconds(lambda: left @ right) for _ in range(5))


def _seconds(action: Callable[[], Any]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def floor_operations(model: Any, rows: Sequence[TokenPair]) -> float:
    """Operations no exact step avoids: 6 per weight and token, a prompt once, the head at answers only, attention left out."""
    head = model.get_output_embeddings().weight.numel()
    body = sum(weight.numel() for weight in model.parameters() if weight.ndim == 2)
    body -= head + model.get_input_embeddings().weight.numel()
    answers = sum(len(row.chosen) + len(row.rejected) for row in rows)
    return 6.0 * (body * _unique(rows) + head * answers)


def _unique(rows: Sequence[TokenPair]) -> int:
    return sum(len(row.prompt) + len(row.chosen) + len(row.rejected) for row in rows)


def _step(side: Ours | Theirs) -> None:
    side.accumulate()
    side.move()


def measure(work: Work, precision: str, plan: Plan, folder: Path) -> dict[str, Any]:
    """Time both sides on one kind of work.

    Args:
        work: the lengths.
        precision: "float32" or "bf16".
        plan: how much of it.
        folder: where TRL may write.

    Returns: a row of the table; ratios above 1 say how many times as fast as TRL we are.

    Raises:
        DpobenchError: loss or gradient of the two sides differ by more than rounding.
    """
    reference = small_llama()
    policy, texts = perturbed(reference), draw_texts(work, plan.pairs)
    # TRL takes accelerate's state as it finds it; ours sets the precision.
    accelerator_for("cpu", precision)
    rivals = {n: Theirs(policy, reference, texts, folder, micro_batch=n, precision=precision) for n in plan.batches}
    rows = rivals[1].pairs(reference)
    ours = Ours(policy, rows, logistic_loss(), precision)
    apart = disagreement(ours, list(rivals.values()))
    if not max(apart) <= AGREEMENT[precision]:
        raise DpobenchError(
            f"{work.name}, {precision}: loss and gradient differ from TRL's by {apart}; nothing is timed"
        )
    sides: dict[int, Ours | Theirs] = {0: ours, **rivals}
    taken: dict[int, list[float]] = {n: [] for n in sides}
    rates = []
    for _ in range(plan.repeats):
        rates.append(matmul_rate(_unique(rows), precision))
        for n, side in sides.items():
            taken[n].append(_seconds(partial(_step, side)))
    seconds = {n: statistics.median(times) for n, times in taken.items()}
    return _row(work, precision, rows, seconds, apart) | {
        "floor_share": round(floor_operations(reference, rows) / statistics.median(rates) / seconds[0], 3)
    }


def _row(
    work: Work, precision: str, rows: Sequence[TokenPair], seconds: Mapping[int, float], apart: tuple[float, float]
) -> dict[str, Any]:
    """A row of the table. `seconds`: of a step, by TRL's batch; ours stands at 0."""
    own, theirs = seconds[0], {n: taken for n, taken in seconds.items() if n}
    best = min(theirs, key=lambda n: theirs[n])
    return {
        "work": work.name,
        "dtype": precision,
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
    ("dtype", "dtype", "<8"),
    ("tokens/s", "tokens_per_s", ">9.0f"),
    ("x TRL best", "ratio_to_trl_best", ">11.2f"),
    ("(batch)", "trl_best_batch", ">8"),
    ("x TRL batch 8", "ratio_to_trl_batch8", ">14.2f"),
    ("share of floor", "floor_share", ">15.2f"),
    ("gradient apart", "gradient_difference", ">15.1e"),
    ("load", "load_average", ">6.1f"),
)


def run(target: Path | None, *, quick: bool = False) -> Iterator[str]:
    """Measure, and yield the lines of a table as they come.

    Args:
        target: where the rows are written as JSON, too; None for nowhere.
        quick: fewer pairs, repetitions and batches, float32 only.

    Raises:
        UserError: TRL is not installed.
        DpobenchError: loss or gradient of the two sides differ.
    """
    if importlib.util.find_spec("trl") is None:
        raise UserError(
            "bench compares with TRL, which is not installed; pip install 'dpobench[parity]', or: make bench"
        )
    plan, rows = QUICK if quick else FULL, []
    yield (
        f"one thread, {plan.pairs} pairs a step, medians of {plan.repeats} steps in turns; TRL {version('trl')} at batch "
        f"{', '.join(map(str, plan.batches))} with its reference precomputed; Llama {HIDDEN} x {LAYERS}, {VOCABULARY} words"
    )
    yield "".join(f"{title:{form.split('.')[0]}}" for title, _, form in _COLUMNS)
    for precision, works in plan.precisions.items():
        for work in works:
            with _quiet(), tempfile.TemporaryDirectory(prefix="dpobench-bench-") as folder:
                rows.append(measure(work, precision, plan, Path(folder)))
            yield "".join(f"{rows[-1][key]:{form}}" for _, key, form in _COLUMNS)
    yield "x TRL: how many times as fast as TRL's step. Floor: least arithmetic of an exact step at this machine's matmul rate."
    if target is not None:
        store.write_bytes(target, (json.dumps(rows, indent=1) + "\n").encode())
