"""Scores: one row per prompt and draw, never a mean; and what each metric means."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import Field

from dpobench.artifacts.files import write_bytes
from dpobench.artifacts.format import Part, Record, Values
from dpobench.errors import DpobenchError

Role = Literal["headline", "distance", "benchmark", "preference", "length", "diagnostic"]
COLUMNS = ("prompt", "draw", "group", "metric", "value")
# Stands for metrics whose names are known only when an evaluator runs.
ANY_NAME = "*"
# Folder of a run that holds the checkpoints within its training.
WITHIN = "within"


@dataclass(frozen=True)
class Metric:
    """What a metric is, declared by its evaluator so that no report guesses.

    Args:
        unit: for example "share", "nats per sequence", "tokens".
        better: which direction is better; "none" where neither is.
        role: what the report uses it for. "headline" ranks variants, "distance" is how far the policy went, "benchmark" is
            a held-out task, "preference" ranks where there is no judge, "length" is the size of the answers.
        label: how tables and figures call it.

    Example:
        >>> Metric("tokens", "none", role="length", label="length of the answers").better
        'none'
    """

    unit: str
    better: Literal["higher", "lower", "none"]
    role: Role = "diagnostic"
    label: str = ""


class ScoreSettings(Part):
    """All that decided an evaluator's scores besides the checkpoint.

    Args:
        heldout: content key of the held-out inputs and of how answers are drawn.
        seed: mixed into the draws; None where the settings of a plan are meant, and not those of one checkpoint.
        needs: content keys of what the evaluator declared to need.
        code: hash of the evaluator's code.
        arguments: its hyper-parameters.
        content: hashes of files and folders that these name.
    """

    heldout: str = ""
    seed: int | None = None
    needs: dict[str, str] = Field(default_factory=dict)
    code: str = ""
    arguments: Values = Field(default_factory=dict)
    content: dict[str, str] = Field(default_factory=dict)


class ScoresRecord(Record):
    """The record of a table of scores, in a file next to it.

    Args:
        metrics: what each means.
        settings: under which they were measured.
    """

    metrics: dict[str, Metric]
    settings: ScoreSettings


def score_rows(
    prompts: Sequence[str],
    metric: str,
    values: npt.ArrayLike,
    *,
    draws: Sequence[int] | int = 0,
    group: Sequence[str] | str = "",
) -> pd.DataFrame:
    """A table of scores.

    Args:
        prompts: id of the prompt (or benchmark document) of each row.
        metric: name of the metric, one of those the evaluator declared.
        values: one number per row.
        draws: number of the sampled answer, where there is one.
        group: task, opponent or other subdivision that must not be averaged over.

    Returns: columns `prompt, draw, group, metric, value`.

    Example:
        >>> table = score_rows(["p1", "p1", "p2"], "length", [3, 5, 4], draws=[0, 1, 0])
        >>> table[["prompt", "draw", "value"]].values.tolist()
        [['p1', 0, 3.0], ['p1', 1, 5.0], ['p2', 0, 4.0]]
    """
    frame = pd.DataFrame({"prompt": list(prompts), "draw": draws, "group": group, "metric": metric})
    frame["value"] = np.asarray(values, dtype=np.float64)
    # A table without rows has nothing to tell the types by.
    return frame.astype({"prompt": "str", "draw": np.int64})[list(COLUMNS)]


def check(frame: pd.DataFrame, declared: Mapping[str, Metric], evaluator: str) -> None:
    """Refuse a table that breaks the contract.

    Raises:
        DpobenchError: wrong columns, an undeclared metric, a repeated row.
    """
    if tuple(frame.columns) != COLUMNS:
        raise DpobenchError(
            f"evaluator {evaluator!r} returned columns {list(frame.columns)}; {list(COLUMNS)} are expected"
        )
    unknown = set(frame["metric"]) - set(declared) if "*" not in declared else set()
    if unknown:
        raise DpobenchError(f"evaluator {evaluator!r} returned undeclared metrics {sorted(unknown)}")
    if frame.duplicated(["prompt", "draw", "group", "metric"]).any():
        raise DpobenchError(f"evaluator {evaluator!r} returned two rows for one prompt, draw, group and metric")


def write(
    folder: Path, evaluator: str, frame: pd.DataFrame, declared: Mapping[str, Metric], settings: ScoreSettings
) -> None:
    """Write `scores/<evaluator>.parquet` and, last, the record next to it that says what the metrics mean."""
    table, record = _files(folder, evaluator)
    table.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(table, frame.to_parquet(index=False))
    ScoresRecord(metrics=dict(declared), settings=settings).write_file(record)


def read(folder: Path, evaluator: str) -> tuple[pd.DataFrame, dict[str, Metric]]:
    """Read what `write` wrote.

    Returns: the rows, and the meaning of each metric.
    """
    table, record = _files(folder, evaluator)
    return pd.read_parquet(table), ScoresRecord.read_file(record).metrics


def present(folder: Path) -> list[str]:
    """Evaluators whose scores lie complete in a run folder."""
    return sorted(file.stem for file in (folder / "scores").glob("*.json") if file.with_suffix(".parquet").is_file())


def settings(folder: Path, evaluator: str) -> ScoreSettings:
    """Settings under which an evaluator ran."""
    return ScoresRecord.read_file(_files(folder, evaluator)[1]).settings


def _files(folder: Path, evaluator: str) -> tuple[Path, Path]:
    """Where a table of scores and its record lie."""
    return folder / "scores" / f"{evaluator}.parquet", folder / "scores" / f"{evaluator}.json"


def within(folder: Path, step: int) -> Path:
    """Where a checkpoint within a training lies, with its samples and scores, in the folder of the run."""
    return folder / WITHIN / str(step)


def step_of(run: str, step: int) -> str:
    """Name of a run's checkpoint within its training."""
    return f"{run}@{step}"


def spread(count: int, steps: int) -> tuple[int, ...]:
    """Numbers of steps at which so many checkpoints cut a training into equal parts; its end is none of them.

    Example:
        >>> spread(3, 64)
        (16, 32, 48)
    """
    numbers = {round(steps * place / (count + 1)) for place in range(1, count + 1)}
    return tuple(sorted(numbers - {0, steps}))
