"""`dpobench bench`: our training step against TRL's, in time and memory, as a table that grows line by line."""

import contextlib
import gc
import importlib.util
import json
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import torch

from dpobench.artifacts.files import write_bytes
from dpobench.bench import memory, step, whole_sweep
from dpobench.bench.suites import Suite
from dpobench.bench.workloads import workload_of
from dpobench.errors import UserError
from dpobench.sweep.allocator import keep_pages

# Title, key of the row, format.
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


def run(target: Path | None, suite: Suite, *, data: Sequence[str] = (), with_sweep: bool = False) -> Iterator[str]:
    """Measure, and yield the lines of a table as they come.

    Args:
        target: JSON file to which the rows are written, too; None for none.
        suite: what is measured, how often, and where.
        data: files of preference pairs whose lengths are measured instead of the suite's workloads.
        with_sweep: compare a whole sweep of twelve runs, too.

    Yields: lines of text.

    Raises:
        UserError: TRL is not installed, there is no such device, or a file cannot be read.
        DpobenchError: loss or gradient of the two sides differ.
    """
    if importlib.util.find_spec("trl") is None:
        raise UserError(
            "bench compares with TRL, which is not installed; pip install 'dpobench[parity]', or: make bench"
        )
    if suite.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--gpu: torch sees no CUDA device; leave --gpu out, or install a CUDA build of torch")
    rows: list[Mapping[str, object]] = []
    suite = suite.on(tuple(map(workload_of, data))) if data else suite
    yield (
        f"{suite.device}, one thread, {suite.pairs} pairs a step, medians of {suite.repeats} steps in turns; TRL "
        f"{version('trl')} with its reference precomputed; memory: of the step alone, against TRL's best batch"
    )
    yield "".join(f"{title:{form.split('.')[0]}}" for title, _, form in _COLUMNS)
    for spec, batches in suite.steps():
        with quiet(), tempfile.TemporaryDirectory(prefix="dpobench-bench-") as folder:
            timing = step.measure(step.prepare(spec, batches, Path(folder)), suite.repeats)
            _free_memory()
            peaks = memory.compare(spec, tuple(dict.fromkeys((timing.trl_best_batch, 8))))
        rows.append(asdict(timing) | peaks)
        yield "".join(f"{rows[-1][key]:{form}}" for _, key, form in _COLUMNS)
        _write(target, rows)
    yield "x TRL: how many times as fast as TRL's step. Floor: least arithmetic of an exact step at this machine's matmul rate."
    if with_sweep:
        with quiet(), tempfile.TemporaryDirectory(prefix="dpobench-sweep-") as folder:
            sweep_row = yield from whole_sweep.run(Path(folder))
        rows.append({**sweep_row})
        _write(target, rows)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Within: one thread, no tracker, no progress bar. Afterwards environment, threads and log levels are as before."""
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


def _free_memory() -> None:
    """Free the device's memory for the next processes; trainers are held by reference cycles, so they are collected first."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _write(target: Path | None, rows: Sequence[Mapping[str, object]]) -> None:
    """Write the rows so far, so that a bench that is stopped has lost nothing."""
    if target is not None:
        write_bytes(target, (json.dumps(rows, indent=1) + "\n").encode())
