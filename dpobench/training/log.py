"""The log of a training: one row per step, and what a reader should know about it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from dpobench.artifacts.files import write_bytes
from dpobench.losses.variant import Bound
from dpobench.training.gradient import Measurements

_STATISTIC = "statistic_"


@dataclass(frozen=True)
class LogRow:
    """One line of `log.jsonl`: means over the pairs of a step's global batch, before the step was taken.

    Args:
        step: its number, from 0.
        loss: mean loss.
        margin: chosen minus rejected log-ratio to the start policy, nats.
        accuracy: share of pairs with a positive margin.
        ties: share of pairs whose margin is 0.
        reward_chosen: `reward_beta` times the chosen log-ratio.
        reward_rejected: `reward_beta` times the rejected log-ratio.
        reward_beta: beta where its unit is nats of summed log-ratio, else 1.
        chosen_logp: log-probability of the chosen answer, nats.
        rejected_logp: log-probability of the rejected answer, nats.
        chosen_logratio: policy minus start policy, nats.
        rejected_logratio: the same of the rejected answer.
        gradient_norm: before clipping.
        learning_rate: of the step.
        saturation: share of pairs whose gradient on a chosen token is below 1 % of that at policy = reference.
        tokens: of all sides, prompts counted once per side.
        tokens_per_s: tokens a second of computing the gradient.
        seconds: wall time of the step.
        statistics: running statistics, this step counted.
    """

    step: int
    loss: float
    margin: float
    accuracy: float
    ties: float
    reward_chosen: float
    reward_rejected: float
    reward_beta: float
    chosen_logp: float
    rejected_logp: float
    chosen_logratio: float
    rejected_logratio: float
    gradient_norm: float
    learning_rate: float
    saturation: float
    tokens: int
    tokens_per_s: float
    seconds: float
    statistics: Mapping[str, float] = field(default_factory=dict)

    def as_json(self) -> dict[str, float]:
        """The row as it stands in the file: flat, each statistic under `statistic_NAME`."""
        columns = asdict(self)
        statistics = columns.pop("statistics")
        return {f"{_STATISTIC}{name}": value for name, value in statistics.items()} | columns

    @classmethod
    def from_json(cls, row: Mapping[str, float]) -> "LogRow":
        """The row of a line of the file."""
        statistics = {key.removeprefix(_STATISTIC): value for key, value in row.items() if key.startswith(_STATISTIC)}
        columns = {key: value for key, value in row.items() if not key.startswith(_STATISTIC)}
        return cls(**columns, statistics=statistics)  # type: ignore[arg-type]


def log_row(
    step: int, measured: Measurements, gradient_norm: float, learning_rate: float, bound: Bound, seconds: float
) -> LogRow:
    """The row of a step.

    Args:
        step: its number, from 0.
        measured: columns of the global batch, gathered over processes and micro-batches.
        gradient_norm: before clipping.
        learning_rate: of the step.
        bound: the loss.
        seconds: that computing the gradient took.
    """
    columns = {name: column.double().cpu() for name, column in measured.per_pair.items()}
    margin, mean = columns["margin"], {name: float(column.mean()) for name, column in columns.items()}
    beta = float(bound.params[bound.variant.strength]) if bound.variant.unit == "nat" else 1.0
    saturated = columns["chosen_gradient"] < 0.01 * columns["chosen_gradient_at_start"]
    return LogRow(
        step=step,
        loss=mean["loss"],
        margin=mean["margin"],
        accuracy=float((margin > 0).double().mean()),
        ties=float((margin == 0).double().mean()),
        reward_chosen=beta * mean["chosen_logratio"],
        reward_rejected=beta * mean["rejected_logratio"],
        reward_beta=beta,
        chosen_logp=mean["chosen_logp"],
        rejected_logp=mean["rejected_logp"],
        chosen_logratio=mean["chosen_logratio"],
        rejected_logratio=mean["rejected_logratio"],
        gradient_norm=gradient_norm,
        learning_rate=learning_rate,
        saturation=float(saturated.double().mean()),
        tokens=measured.tokens,
        tokens_per_s=round(measured.tokens / max(seconds, 1e-9), 1),
        seconds=round(seconds, 4),
        statistics=dict(measured.statistics),
    )


def flags(log: Sequence[LogRow], clip: float) -> list[str]:
    """What a reader of the report should know about a training, in words.

    Args:
        log: all rows.
        clip: the largest gradient norm of the recipe.
    """
    sentences = []
    clipped = sum(row.gradient_norm > clip for row in log) / len(log)
    if clipped > 0.9:
        sentences.append(
            f"gradient clipped at {clipped:.0%} of the steps: the learning rate, not the loss, set the step size"
        )
    if log[-1].loss > 10 * abs(log[0].loss) + 1:
        sentences.append(f"loss rose from {log[0].loss:.3g} to {log[-1].loss:.3g}: unstable")
    tail = log[-max(1, len(log) // 5) :]
    if np.mean([row.saturation for row in tail]) > 0.5:
        sentences.append(
            "more than half the pairs were saturated (gradient below 1 % of its start) in the last fifth of the steps"
        )
    if np.mean([row.chosen_logratio for row in tail]) < -1.0:
        sentences.append("the likelihood of chosen answers fell below the reference's")
    return sentences


def write_log(target: Path, log: Sequence[LogRow]) -> None:
    """Write `log.jsonl` to a folder, one row per step."""
    write_bytes(target / "log.jsonl", "".join(json.dumps(row.as_json()) + "\n" for row in log).encode())
