"""Scores: one row per prompt and draw, never a mean; and what each metric means."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from dpobench.artifacts.files import write_bytes
from dpobench.errors import DpobenchError

Role = Literal["headline", "distance", "benchmark", "preference", "length", "diagnostic"]
COLUMNS = ("prompt", "draw", "group", "metric", "value")
# Folder of a run that holds the checkpoints within its training.
WITHIN = "within"


@dataclass(frozen=True)
class Metric:
    """What a metric is, declared by its evaluator so that no report guesses.

    Args:
        unit: for example "share", "nats per sequence", "tokens".
        better: which direction is better; "none" where neither is.
        role: what the report uses it for. "headline" ranks variants, "distance" is how far the policy went, "benchmark" is
            a held-out task, "preference" ranks where no judge is at hand, "length" is the size of the answers.
        label: how tables and figures call it.
    """

    unit: str
    better: Literal["higher", "lower", "none"]
    role: Role = "diagnostic"
    label: str = ""


def rows(
    prompts: Sequence[str], metric: str, values: Any, *, draws: Sequence[int] | int = 0, group: Sequence[str] | str = ""
) -> pd.DataFrame:
    """A table of scores.

    Args:
        prompts: id of the prompt (or benchmark document) of each row.
        metric: name of the metric, one of those the evaluator declared.
        values: one number per row.
        draws: number of the sampled answer, where there is one.
        group: task, opponent or other subdivision that must not be averaged over.

    Returns: columns `prompt, draw, group, metric, value`.
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
    folder: Path, evaluator: str, frame: pd.DataFrame, declared: Mapping[str, Metric], settings: Mapping[str, Any]
) -> None:
    """Write `scores/<evaluator>.parquet` and, last, the `.json` beside it that says what the metrics mean."""
    target = folder / "scores"
    target.mkdir(parents=True, exist_ok=True)
    write_bytes(target / f"{evaluator}.parquet", frame.to_parquet(index=False))
    meaning = {name: asdict(metric) for name, metric in declared.items()}
    note = json.dumps({"metrics": meaning, "settings": dict(settings)}, indent=1, sort_keys=True, default=str)
    write_bytes(target / f"{evaluator}.json", note.encode())


def read(folder: Path, evaluator: str) -> tuple[pd.DataFrame, dict[str, Metric]]:
    """Read what `write` wrote.

    Returns: the rows, and the meaning of each metric.
    """
    frame = pd.read_parquet(folder / "scores" / f"{evaluator}.parquet")
    note = json.loads((folder / "scores" / f"{evaluator}.json").read_text())
    return frame, {name: Metric(**fields) for name, fields in note["metrics"].items()}


def present(folder: Path) -> list[str]:
    """Evaluators whose scores lie complete in a run folder."""
    return sorted(file.stem for file in (folder / "scores").glob("*.json") if file.with_suffix(".parquet").is_file())


def settings(folder: Path, evaluator: str) -> dict[str, Any]:
    """Settings under which an evaluator ran."""
    return dict(json.loads((folder / "scores" / f"{evaluator}.json").read_text())["settings"])


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
    found = {round(steps * place / (count + 1)) for place in range(1, count + 1)}
    return tuple(sorted(found - {0, steps}))
