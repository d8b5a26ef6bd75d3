"""Our training step against TRL's: same pairs, weights and optimizer, one process, one thread, taking turns.

A figure is returned only after loss and gradient of the two sides agreed on that very step.
"""

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dpobench.bench.sides import HarnessSide, TrlSide, disagreement, logistic_loss
from dpobench.bench.suites import StepSpec
from dpobench.bench.workloads import SMALL, draw_texts, llama, perturbed
from dpobench.data.tokens import TokenPair
from dpobench.errors import DpobenchError
from dpobench.training.accelerate import accelerator_for

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# How far loss and gradient of the sides may differ, relative: rounding of the arithmetic, by precision.
AGREEMENT = {"float32": 5e-6, "bf16": 5e-2}


@dataclass(frozen=True)
class Contest:
    """Both sides, ready to take the same step.

    Args:
        spec: of the step.
        ours: our side.
        trl: TRL's, by its batch per device.
        rows: the pairs of the step.
        reference: the reference of both.
    """

    spec: StepSpec
    ours: HarnessSide
    trl: Mapping[int, TrlSide]
    rows: Sequence[TokenPair]
    reference: "PreTrainedModel"


@dataclass(frozen=True)
class StepTiming:
    """A row of the table. Its fields are the keys of the JSON file.

    Args:
        work: name of the workload.
        model: name of the model's shape.
        dtype: the precision.
        layout: how our side lays out its batch: "packed" or "padded".
        tokens_per_s: of our step; prompts counted twice.
        ratio_to_trl_best: how many times as fast we are as TRL at its fastest batch.
        trl_best_batch: that batch, per device.
        ratio_to_trl_batch8: how many times as fast we are as TRL at batch 8.
        seconds: of our step, the median.
        trl_seconds: of TRL's, by batch.
        loss_difference: relative difference of the sides' loss.
        gradient_difference: relative difference of their gradients.
        load_average: of the machine over the last minute, processes.
        floor_share: time of the least arithmetic of an exact step, as a share of ours.
    """

    work: str
    model: str
    dtype: str
    layout: str
    tokens_per_s: float
    ratio_to_trl_best: float
    trl_best_batch: int
    ratio_to_trl_batch8: float
    seconds: float
    trl_seconds: Mapping[str, float]
    loss_difference: float
    gradient_difference: float
    load_average: float
    floor_share: float


def prepare(spec: StepSpec, batches: Sequence[int], folder: Path) -> Contest:
    """Make both sides of one step.

    Args:
        spec: of the step.
        batches: TRL's batches per device, 1 and 8 among them.
        folder: where TRL may write.
    """
    precision, device = spec.precision, spec.device
    reference = llama(spec.shape).to(device)
    policy, texts = perturbed(reference), draw_texts(spec.workload, spec.pairs, vocabulary=spec.shape.vocabulary)
    # TRL uses accelerate's global state as it is; this sets its precision.
    accelerator_for(device, precision)
    trl = {
        batch: TrlSide(policy, reference, texts, folder, micro_batch=batch, precision=precision, device=device)
        for batch in batches
    }
    rows = trl[1].pairs(reference)
    return Contest(spec, HarnessSide(policy, rows, logistic_loss(), precision, device), trl, rows, reference)


def measure(contest: Contest, repeats: int) -> StepTiming:
    """Compare both sides on one step, then time them in turns.

    Args:
        contest: the sides.
        repeats: timed steps of each side.

    Raises:
        DpobenchError: loss or gradient of the two sides differ by more than rounding.
    """
    spec, ours, rows = contest.spec, contest.ours, contest.rows
    loss_difference, gradient_difference = disagreement(ours, list(contest.trl.values()))
    if not max(loss_difference, gradient_difference) <= AGREEMENT[spec.precision]:
        raise DpobenchError(
            f"{spec.workload.name}, {spec.precision}: loss and gradient differ from TRL's by {loss_difference:.2g} and "
            f"{gradient_difference:.2g}; nothing is timed"
        )
    our_seconds: list[float] = []
    trl_seconds: dict[int, list[float]] = {batch: [] for batch in contest.trl}
    rates = []
    for _ in range(repeats):
        rates.append(matmul_rate(_distinct_tokens(rows), spec.precision, spec.shape.hidden, spec.device))
        our_seconds.append(_seconds(ours.step))
        for batch, side in contest.trl.items():
            trl_seconds[batch].append(_seconds(side.step))
    seconds = statistics.median(our_seconds)
    medians = {batch: statistics.median(times) for batch, times in trl_seconds.items()}
    best = min(medians, key=lambda batch: medians[batch])
    floor = floor_operations(contest.reference, rows) / statistics.median(rates)
    return StepTiming(
        work=spec.workload.name,
        model=spec.shape.name,
        dtype=spec.precision,
        layout="packed" if ours.auxiliary.packed else "padded",
        tokens_per_s=round(sum(row.size for row in rows) / seconds, 1),
        ratio_to_trl_best=round(medians[best] / seconds, 3),
        trl_best_batch=best,
        ratio_to_trl_batch8=round(medians[8] / seconds, 3),
        seconds=round(seconds, 4),
        trl_seconds={str(batch): round(median, 4) for batch, median in medians.items()},
        loss_difference=loss_difference,
        gradient_difference=gradient_difference,
        load_average=round(os.getloadavg()[0], 2),
        floor_share=round(floor / seconds, 3),
    )


def matmul_rate(tokens: int, precision: str, hidden: int = SMALL.hidden, device: str = "cpu") -> float:
    """Speed of a matrix product (tokens x hidden) @ (hidden x 4 hidden) in this process.

    Args:
        tokens: rows of the left matrix.
        precision: "float32" or "bf16".
        hidden: width of the model.
        device: "cpu" or "cuda".

    Returns: floating-point operations a second, in the fastest of five products.
    """
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    left, right = (torch.randn(shape, dtype=dtype, device=device) for shape in ((tokens, hidden), (hidden, 4 * hidden)))
    left @ right
    return 2.0 * left.numel() * right.shape[1] / min(_seconds(lambda: left @ right) for _ in range(5))


def floor_operations(model: "PreTrainedModel", rows: Sequence[TokenPair]) -> float:
    """Floating-point operations that no exact step avoids.

    They are 6 per weight and token, each prompt once, the head at answers only; attention is left out.

    Args:
        model: a causal language model.
        rows: the pairs of the step.
    """
    head, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    body = sum(weight.numel() for weight in model.parameters() if weight.ndim == 2) - head.numel()
    body -= 0 if embedding is head else embedding.numel()
    answer_tokens = sum(len(row.chosen) + len(row.rejected) for row in rows)
    operations: float = 6.0 * (body * _distinct_tokens(rows) + head.numel() * answer_tokens)
    return operations


def _distinct_tokens(rows: Sequence[TokenPair]) -> int:
    """Tokens of all pairs, each prompt counted once."""
    return sum(len(row.prompt) + len(row.chosen) + len(row.rejected) for row in rows)


def _seconds(action: Callable[[], object]) -> float:
    """Wall time until everything that an action started is done."""
    _synchronise()
    began = time.perf_counter()
    action()
    _synchronise()
    return time.perf_counter() - began


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
