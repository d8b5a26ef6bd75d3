"""Peak memory of a step, ours and TRL's: each side in a process of its own, so that neither inherits what the other left behind."""

import contextlib
import ctypes
import gc
import importlib.util
import logging
import multiprocessing
import os
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dpobench.bench.sides import Ours, Theirs, logistic_loss
from dpobench.bench.works import SMALL, Shape, Work, draw_texts, llama, perturbed, word_tokenizer
from dpobench.data.tokens import TokenPair
from dpobench.errors import UserError
from dpobench.models.logprobs import score_sequences
from dpobench.sweep.allocator import keep_pages

OURS, TRL = "ours", "trl"
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def compare(
    work: Work,
    precision: str = "float32",
    shape: Shape = SMALL,
    *,
    pairs: int = 16,
    batches: Sequence[int] = (1, 8),
    device: str = "cpu",
) -> dict[str, Any]:
    """Measure our step and TRL's at each batch.

    Args:
        work: the lengths.
        precision: "float32" or "bf16".
        shape: of the model.
        pairs: of a step.
        batches: TRL's batches per device; the first is its best.
        device: "cpu" or "cuda".

    Returns: `ratios` of all, and `memory_mb`: what `peak` found, by side.

    Raises:
        UserError: TRL is not installed, or the system does not tell a process its memory.
    """
    if importlib.util.find_spec(TRL) is None:
        raise UserError("peak memory is compared with TRL, which is not installed; pip install 'dpobench[parity]'")
    own = peak(OURS, work, shape, precision, pairs=pairs, device=device)
    theirs = {batch: peak(TRL, work, shape, precision, batch, pairs=pairs, device=device) for batch in batches}
    told = {OURS: own} | {f"{TRL}_batch{batch}": found for batch, found in theirs.items()}
    return ratios(own, theirs) | {"memory_mb": told}


def ratios(own: Mapping[str, float], theirs: Mapping[int, Mapping[str, float]]) -> dict[str, float]:
    """How our memory compares with TRL's; below 1 we need less.

    Args:
        own: what `peak` found for our side.
        theirs: the same for TRL, by batch; the first is its best.

    Returns: `peak_memory_ratio`, of the step's own memory (peak less what lay there before it), and `resident_ratio`, of whole
        peaks, both against the best batch; the same with `_batchN` for each other.
    """
    found = {}
    for number, (batch, other) in enumerate(theirs.items()):
        ending = f"_batch{batch}" if number else ""
        step, other_step = (side["peak_mb"] - side["before_mb"] for side in (own, other))
        found[f"peak_memory_ratio{ending}"] = round(step / other_step, 3)
        found[f"resident_ratio{ending}"] = round(own["peak_mb"] / other["peak_mb"], 3)
    return found


def peak(
    side: str,
    work: Work,
    shape: Shape = SMALL,
    precision: str = "float32",
    micro_batch: int = 1,
    *,
    pairs: int = 16,
    device: str = "cpu",
) -> dict[str, float]:
    """Memory of one side in a fresh process of one thread.

    Args:
        side: "ours" or "trl".
        work: the lengths.
        shape: of the model.
        precision: "float32" or "bf16".
        micro_batch: TRL's batch per device; our side fills micro-batches to the recipe's tokens.
        pairs: of a step.
        device: "cpu" or "cuda".

    Returns: megabytes of 10^6 bytes. `before_mb`: with imports, weights, optimizer moments and gradients there, after a step on
        the two shortest pairs. `peak_mb`: the highest during two whole steps. Both are resident memory on a CPU, and what the
        allocator handed out on CUDA.

    Raises:
        UserError: the system does not tell a process its memory.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_measured, side, work, shape, precision, micro_batch, pairs, device).result()


def _measured(
    side: str, work: Work, shape: Shape, precision: str, micro_batch: int, pairs: int, device: str
) -> dict[str, float]:
    """Body of the fresh process."""
    _silence()
    torch.set_num_threads(1)
    if side == OURS:
        # As its workers do; TRL's process is as any other.
        keep_pages()
    with tempfile.TemporaryDirectory(prefix="dpobench-memory-") as folder:
        one = _side(side, work, shape, precision, micro_batch, pairs, device, Path(folder))
        rows = one.rows
        one.rows = sorted(rows, key=_tokens)[:2]
        one.accumulate()
        one.move()
        # A step leaves no gradients behind: these lie there when the measurement begins, on both sides.
        one.accumulate()
        one.rows = rows
        before = _restart(device)
        for _ in range(2):
            one.accumulate()
            one.move()
        return {"before_mb": round(before / 1e6, 1), "peak_mb": round(_highest(device) / 1e6, 1)}


def _side(
    side: str, work: Work, shape: Shape, precision: str, micro_batch: int, pairs: int, device: str, folder: Path
) -> Any:
    """The one place that knows how a side is made."""
    reference = llama(shape).to(device)
    policy, texts = perturbed(reference), draw_texts(work, pairs, vocabulary=shape.vocabulary)
    if side == OURS:
        return Ours(policy, read_texts(reference, texts), logistic_loss(), precision, device)
    import datasets

    datasets.disable_progress_bars()
    return Theirs(policy, reference, texts, folder, micro_batch=micro_batch, precision=precision, device=device)


def read_texts(reference: Any, texts: Sequence[Mapping[str, str]]) -> list[TokenPair]:
    """The tokens TRL makes of the texts, with the reference's log-probabilities, without importing TRL."""
    tokenizer = word_tokenizer(len(reference.get_input_embeddings().weight))

    def ids(text: str, *end: int) -> np.ndarray:
        return np.asarray([*tokenizer(text)["input_ids"], *end], np.int64)

    end = tokenizer.eos_token_id
    pairs = [
        TokenPair(str(number), ids(row["prompt"]), ids(row["chosen"], end), ids(row["rejected"], end))
        for number, row in enumerate(texts)
    ]
    sides = [(pair.prompt.tolist(), answer.tolist()) for pair in pairs for answer in (pair.chosen, pair.rejected)]
    logps = iter(score_sequences(reference, sides))
    return [pair.with_reference(next(logps), next(logps)) for pair in pairs]


def _tokens(row: TokenPair | Mapping[str, Any]) -> int:
    if isinstance(row, TokenPair):
        return row.size
    return 2 * len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"])


def _silence() -> None:
    """No progress bars, no warnings: TRL speaks up on both."""
    os.environ |= {"TQDM_DISABLE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")


def _restart(device: str) -> int:
    """Let the high-water mark fall to what is in use now. Returns: that, in bytes."""
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    # What the allocator kept of freed memory would hide as much of the step's own.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    try:
        _CLEAR.write_text("5")
    except OSError as error:
        raise UserError(
            f"peak memory: {_CLEAR} cannot be written ({error.strerror}), so the mark of an earlier peak stays; "
            "measure on Linux, in a process that may write its own /proc"
        ) from error
    return _resident("VmRSS")


def _highest(device: str) -> int:
    """Bytes at the high-water mark since the restart."""
    return torch.cuda.max_memory_allocated(device) if device == "cuda" else _resident("VmHWM")


def _resident(name: str) -> int:
    line = next(line for line in _STATUS.read_text(encoding="utf-8").splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024
