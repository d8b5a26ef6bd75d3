"""Peak memory of a step, ours and TRL's, each in a fresh process, so that neither inherits memory of the other."""

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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from dpobench.bench.sides import HarnessSide, TrlSide, logistic_loss
from dpobench.bench.suites import StepSpec
from dpobench.bench.workloads import TextPair, draw_texts, llama, perturbed, word_tokenizer
from dpobench.data.tokens import TokenPair
from dpobench.errors import UserError
from dpobench.models.logprobs import score_sequences
from dpobench.sweep.allocator import keep_pages

if TYPE_CHECKING:
    from transformers import PreTrainedModel

OURS, TRL = "ours", "trl"
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Peak:
    """Memory of one side, in megabytes of 10^6 bytes: resident memory on a CPU, what the allocator handed out on CUDA.

    Args:
        before_mb: with imports, weights, optimizer moments and gradients in memory, after a step on the two shortest pairs.
        peak_mb: the highest during two whole steps.
    """

    before_mb: float
    peak_mb: float

    @property
    def step_mb(self) -> float:
        """What the steps needed on top."""
        return self.peak_mb - self.before_mb


def compare(spec: StepSpec, batches: Sequence[int] = (1, 8)) -> dict[str, float | dict[str, dict[str, float]]]:
    """Measure our step and TRL's at each batch.

    Args:
        spec: of the step.
        batches: TRL's batches per device; the first is its fastest.

    Returns: the `ratios`, and `memory_mb`: the `Peak` of each side.

    Raises:
        UserError: TRL is not installed, or the system does not let a process measure its memory.
    """
    if importlib.util.find_spec(TRL) is None:
        raise UserError("peak memory is compared with TRL, which is not installed; pip install 'dpobench[parity]'")
    ours = peak(OURS, spec)
    trl = {batch: peak(TRL, spec, batch) for batch in batches}
    peaks = {OURS: asdict(ours)} | {f"{TRL}_batch{batch}": asdict(other) for batch, other in trl.items()}
    return {**ratios(ours, trl), "memory_mb": peaks}


def ratios(ours: Peak, trl: Mapping[int, Peak]) -> dict[str, float]:
    """Our memory over TRL's; below 1 we need less.

    Args:
        ours: memory of our side.
        trl: memory of TRL's, by batch; the first is its fastest.

    Returns: `peak_memory_ratio`, of the steps alone, and `resident_ratio`, of whole peaks, both against the fastest batch; the same
        with `_batchN` for each other.

    Example:
        >>> ratios(Peak(before_mb=100, peak_mb=130), {1: Peak(before_mb=140, peak_mb=200)})
        {'peak_memory_ratio': 0.5, 'resident_ratio': 0.65}
    """
    table = {}
    for number, (batch, other) in enumerate(trl.items()):
        ending = f"_batch{batch}" if number else ""
        table[f"peak_memory_ratio{ending}"] = round(ours.step_mb / other.step_mb, 3)
        table[f"resident_ratio{ending}"] = round(ours.peak_mb / other.peak_mb, 3)
    return table


def peak(side: str, spec: StepSpec, micro_batch: int = 1) -> Peak:
    """Memory of one side in a fresh process of one thread.

    Args:
        side: "ours" or "trl".
        spec: of the step.
        micro_batch: TRL's batch per device; our side fills micro-batches to the recipe's tokens.

    Raises:
        UserError: the system does not let a process measure its memory.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_measured, side, spec, micro_batch).result()


def _measured(side: str, spec: StepSpec, micro_batch: int) -> Peak:
    """Body of the fresh process."""
    # TRL writes progress bars and warnings.
    os.environ |= {"TQDM_DISABLE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if side == OURS:
        # Our workers do so, too; TRL's process is a usual one.
        keep_pages()
    with tempfile.TemporaryDirectory(prefix="dpobench-memory-") as folder:
        measured = _side(side, spec, micro_batch, Path(folder))
        with measured.only_shortest(2):
            measured.step()
            # A step leaves no gradients; these are in memory when the measurement begins, on both sides.
            measured.accumulate()
        before = reset_peak(spec.device)
        for _ in range(2):
            measured.step()
        return Peak(round(before / 1e6, 1), round(peak_since_reset(spec.device) / 1e6, 1))


def _side(side: str, spec: StepSpec, micro_batch: int, folder: Path) -> HarnessSide | TrlSide:
    reference = llama(spec.shape).to(spec.device)
    policy, texts = perturbed(reference), draw_texts(spec.workload, spec.pairs, vocabulary=spec.shape.vocabulary)
    if side == OURS:
        return HarnessSide(policy, read_texts(reference, texts), logistic_loss(), spec.precision, spec.device)
    import datasets

    datasets.disable_progress_bars()
    return TrlSide(
        policy, reference, texts, folder, micro_batch=micro_batch, precision=spec.precision, device=spec.device
    )


def read_texts(reference: "PreTrainedModel", texts: Sequence[TextPair]) -> list[TokenPair]:
    """The tokens that TRL makes of texts, with the reference's log-probabilities, without importing TRL.

    Args:
        reference: a Llama as `llama` makes it.
        texts: pairs of numbered words.
    """
    tokenizer = word_tokenizer(len(reference.get_input_embeddings().weight))

    def ids(text: str, *end: int) -> np.ndarray:
        return np.asarray([*tokenizer(text)["input_ids"], *end], np.int64)

    end = tokenizer.eos_token_id
    pairs = [
        TokenPair(str(number), ids(row["prompt"]), ids(row["chosen"], end), ids(row["rejected"], end))
        for number, row in enumerate(texts)
    ]
    sequences = [(pair.prompt.tolist(), answer.tolist()) for pair in pairs for answer in (pair.chosen, pair.rejected)]
    logps = iter(score_sequences(reference, sequences))
    return [pair.with_reference(next(logps), next(logps)) for pair in pairs]


def reset_peak(device: str, clear: Path = _CLEAR) -> int:
    """Reset the peak to the memory in use now.

    Args:
        device: "cpu" or "cuda".
        clear: file of the system that resets it.

    Returns: that memory, in bytes.

    Raises:
        UserError: the system does not let the process reset its peak.
    """
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    # Freed memory that the allocator still holds would hide as much of what the step needs.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    try:
        clear.write_text("5")
    except OSError as error:
        raise UserError(
            f"peak memory: {clear} cannot be written ({error.strerror}), so an earlier peak cannot be reset; "
            "measure on Linux, in a process that may write its own /proc"
        ) from error
    return resident_memory("VmRSS")


def peak_since_reset(device: str) -> int:
    """Most memory in use since `reset_peak`, in bytes.

    Args:
        device: "cpu" or "cuda".
    """
    return torch.cuda.max_memory_allocated(device) if device == "cuda" else resident_memory("VmHWM")


def resident_memory(name: str) -> int:
    """A figure of this process's memory, in bytes.

    Args:
        name: its name in /proc/self/status: "VmRSS" (resident now) or "VmHWM" (the most since the reset).
    """
    line = next(line for line in _STATUS.read_text(encoding="utf-8").splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024
