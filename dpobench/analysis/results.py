"""Everything an experiment's folder says, read once: plan, runs and one long table of scores."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import get_args

import numpy as np
import numpy.typing as npt
import pandas as pd

from dpobench.artifacts import scores as score_files
from dpobench.artifacts.files import MANIFEST, digest
from dpobench.artifacts.records import Condition, ExperimentRecord, PlannedRun, PlanRecord, RunRecord, Status, Values
from dpobench.artifacts.scores import Metric, Role, ScoreSettings
from dpobench.data.prompts import PROMPTS, Prompt, read_prompts, split_of
from dpobench.errors import Damaged, UserError

HEADLINE, DISTANCE, BENCHMARK, PREFERENCE, LENGTH, DIAGNOSTIC = get_args(Role)
REFERENCE = "reference"
Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class RunResult:
    """One planned training and what became of it.

    Args:
        record: what its folder says of it; of a run that was not started, what the plan says.
        folder: where its files lie; None where it has left none.
        log: rows of `log.jsonl`, one per step; empty where there is none.
    """

    record: RunRecord
    folder: Path | None = None
    log: pd.DataFrame = field(default_factory=pd.DataFrame)

    @property
    def id(self) -> str:
        """Its name in the plan, and of its folder."""
        return self.record.id

    @property
    def variant(self) -> str:
        """Name of the loss."""
        return self.record.variant

    @property
    def seed(self) -> int:
        """Seed of the training."""
        return self.record.seed

    @property
    def params(self) -> Values:
        """All hyper-parameters of the loss."""
        return self.record.params

    @property
    def status(self) -> Status:
        """What became of it; "missing" where its folder is not finished."""
        return self.record.status

    @property
    def condition(self) -> Condition:
        """What a study changed for this run; nothing in the main experiment."""
        return self.record.condition

    @property
    def configuration(self) -> str:
        """Key of what it shares with its other seeds: variant, hyper-parameters, learning rate."""
        return digest(self.variant, self.params, self.record.beta, self.record.learning_rate)


@dataclass(frozen=True)
class Results:
    """What the report is a function of.

    Args:
        experiment: the merged settings.
        plan: runs, data counts, what was left out.
        runs: every planned run of the condition, in the order of the plan.
        scores: columns `run, prompt, draw, group, metric, value`; the reference's rows have run "reference".
        splits: side of the selection/test split, by prompt.
        metrics: what each metric means.
        settings: settings of each evaluator.
        reference: folder of the reference.
        folder: of the experiment.
        unplanned: run folders that the plan does not name; they are not reported.
        not_finite: scores left out because they were no finite number, by metric.
        within: the same for checkpoints within trainings, whose names `scores.step_of` gives; None where none were scored.
    """

    experiment: ExperimentRecord
    plan: PlanRecord
    runs: tuple[RunResult, ...]
    scores: pd.DataFrame
    splits: Mapping[str, str]
    metrics: Mapping[str, Metric]
    settings: Mapping[str, ScoreSettings]
    reference: Path
    folder: Path
    unplanned: int = 0
    not_finite: Mapping[str, int] = field(default_factory=dict)
    within: "Results | None" = None

    @property
    def alpha(self) -> float:
        """Level of the tests."""
        return self.experiment.alpha

    def given(self, variant: str) -> Sequence[str]:
        """What of the data a variant read besides prompts, chosen and rejected answers: columns, gold answers."""
        return self.plan.given.get(variant, ())

    @property
    def control(self) -> str | None:
        """The variant others are tested against: the declared one, or the first of the plan."""
        return self.experiment.control or (self.runs[0].variant if self.runs else None)

    def of_role(self, role: str) -> list[str]:
        """Names of the metrics of a role, in alphabetical order."""
        return sorted(name for name, metric in self.metrics.items() if metric.role == role)

    def first(self, role: str) -> str | None:
        """The first metric of a role that has any scores, None where there is none."""
        scored = {metric for metric, _ in self._tables}
        return next((name for name in self.of_role(role) if name in scored), None)

    def label(self, metric: str) -> str:
        """How tables call a metric."""
        declared = self.metrics.get(metric)
        return (declared.label if declared else "") or metric.replace("_", " ")

    def heading(self, metric: str) -> str:
        """The label at the head of a column."""
        label = self.label(metric)
        return label[:1].upper() + label[1:]

    @cached_property
    def _tables(self) -> dict[tuple[str, str], pd.DataFrame]:
        """Per metric and group: one row per run, one column per prompt."""
        # Draws of one prompt are not independent: they are averaged before anything else.
        means = self.scores.groupby(["metric", "group", "run", "prompt"], sort=True)["value"].mean().reset_index()
        parts = means.groupby(["metric", "group"])
        return {(str(k[0]), str(k[1])): part.pivot(index="run", columns="prompt", values="value") for k, part in parts}

    def groups(self, metric: str) -> list[str]:
        """Groups (tasks, opponents) of a metric."""
        return sorted(group for name, group in self._tables if name == metric)

    def main_group(self, metric: str) -> str:
        """The group a table shows where it has room for one: against the reference if there is such, else the first."""
        groups = self.groups(metric)
        return REFERENCE if REFERENCE in groups else (groups[0] if groups else "")

    def table(self, metric: str, runs: list[str], group: str | None = None, split: str | None = None) -> pd.DataFrame:
        """Scores of some runs as a table: one row per run in the order given, one column per prompt that all of them have."""
        wide = self._tables.get((metric, self.main_group(metric) if group is None else group))
        if wide is None or not set(runs) <= set(wide.index):
            return pd.DataFrame()
        columns = wide.columns if split is None else [prompt for prompt in wide.columns if self.splits[prompt] == split]
        return wide.loc[runs, columns].dropna(axis=1)

    def pairs(self, metric: str, runs: Sequence[str], split: str) -> pd.DataFrame:
        """Scores of held-out pairs one by one: a row per run in the order given, a column per (prompt, draw) that all of them have.

        `table` averages the pairs of one prompt, which is right for means and wrong for whatever is read off a single pair.
        """
        scores = self.scores
        scores = scores[(scores["metric"] == metric) & scores["run"].isin(list(runs))]
        scores = scores[scores["prompt"].map(self.splits).eq(split)]
        wide = scores.pivot_table(index="run", columns=["prompt", "draw"], values="value", aggfunc="mean")
        return wide.loc[list(runs)].dropna(axis=1) if set(runs) <= set(wide.index) else pd.DataFrame()


def load(folder: Path, condition: Condition | None = None) -> Results:
    """Read an experiment's folder.

    Args:
        folder: what `dpobench run --out` was given.
        condition: of a study, one of `conditions`; without it the main experiment.

    Raises:
        UserError: there is no plan in it, or it was written in another format.
        Damaged: a file cannot be read.
    """
    if not PlanRecord.lies_in(folder):
        raise UserError(
            f"{folder}: no plan.json; name the folder of an experiment (what `dpobench run --out` was given)"
        )
    condition = condition or Condition()
    whole, experiment = PlanRecord.read(folder), ExperimentRecord.read(folder)
    runs = tuple(_run(folder / "runs" / one.id, one) for one in whole.runs if one.condition == condition)
    plan = whole.under(condition)
    reference = folder / "reference" / plan.reference
    scored = [(REFERENCE, reference), *((r.id, r.folder) for r in runs if r.folder and r.status == "done")]
    table, not_finite, metrics, settings = _scores(scored)
    splits: dict[str, str] = {str(prompt): split_of(str(prompt)) for prompt in table["prompt"].unique()}
    planned = {one.id for one in whole.runs}
    unplanned = sum(path.parent.name not in planned for path in (folder / "runs").glob("*/run.json"))
    results = Results(
        experiment, plan, runs, table, splits, metrics, settings, reference, folder, unplanned, not_finite
    )
    within = _within(results) if condition.is_main else None
    not_finite = dict(Counter(not_finite) + Counter(within.not_finite if within else {}))
    return replace(results, within=within, not_finite=not_finite)


def _scores(
    scored: Sequence[tuple[str, Path]],
) -> tuple[pd.DataFrame, dict[str, int], dict[str, Metric], dict[str, ScoreSettings]]:
    """All scores of some folders in one table; how many were no finite numbers; what metrics mean and how they were measured."""
    frames: list[pd.DataFrame] = []
    metrics: dict[str, Metric] = {}
    settings: dict[str, ScoreSettings] = {}
    for name, folder in scored:
        for evaluator in score_files.present(folder):
            frame, meaning = score_files.read(folder, evaluator)
            frames.append(frame.assign(run=name))
            metrics |= metrics_by_name(meaning, frame)
            settings.setdefault(evaluator, score_files.settings(folder, evaluator))
    empty = pd.DataFrame({name: [] for name in ("run", *score_files.COLUMNS)})
    table = pd.concat(frames, ignore_index=True) if frames else empty
    finite = np.isfinite(table["value"].astype(float))
    counts = table.loc[~finite, "metric"].value_counts().sort_index()
    not_finite = {str(name): int(count) for name, count in counts.items()}
    return table[finite].reset_index(drop=True), not_finite, metrics, settings


def metrics_by_name(meaning: Mapping[str, Metric], frame: pd.DataFrame) -> dict[str, Metric]:
    """What each metric means, those included whose names only the scores know: they mean what was declared for "*"."""
    unnamed = {str(name) for name in frame["metric"].unique()} - set(meaning) if "*" in meaning else set()
    # One label for all of them would not distinguish them.
    return dict(meaning) | {name: replace(meaning["*"], label="") for name in unnamed}


def _within(results: Results) -> Results | None:
    """What was measured of the checkpoints within trainings, as many of them as the experiment asks for now."""
    count = results.experiment.evaluation.checkpoints
    scored = [
        (score_files.step_of(run.id, step), score_files.within(run.folder, step))
        for run in results.runs
        if run.folder and run.status == "done"
        for step in score_files.spread(count, run.record.steps)
    ]
    table, not_finite, *_ = _scores(scored)
    if not len(table):
        return None
    reference = results.scores[results.scores["run"] == REFERENCE]
    return replace(results, scores=pd.concat([reference, table], ignore_index=True), not_finite=not_finite)


def conditions(results: Results) -> list[Condition]:
    """What the studies of an experiment changed, in the order of the plan, without the main experiment."""
    changed = [run.condition for run in results.plan.runs if not run.condition.is_main]
    return [condition for place, condition in enumerate(changed) if condition not in changed[:place]]


def read_run(folder: Path, planned: PlannedRun) -> RunRecord:
    """What became of a planned run; one that is trained, but not fully scored, counts as missing."""
    if not RunRecord.lies_in(folder):
        return RunRecord.missing(planned)
    record = RunRecord.read(folder)
    if record.status == "done" and not (folder / MANIFEST).is_file():
        return record.updated(status="missing", reason="trained, not fully scored yet")
    return record


def _run(folder: Path, planned: PlannedRun) -> RunResult:
    record = read_run(folder, planned)
    return RunResult(record, folder, _log(folder / "log.jsonl")) if RunRecord.lies_in(folder) else RunResult(record)


def _log(path: Path) -> pd.DataFrame:
    if not path.is_file():
        return pd.DataFrame()
    try:
        log = pd.DataFrame([json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()])
    except json.JSONDecodeError as error:
        raise Damaged(
            f"{path} is damaged ({error}); remove {path.parent} and run again, only this run is made anew"
        ) from error
    if {"accuracy", "ties"} <= set(log):
        # As on held-out pairs a tie is half right: at its first step a policy is the reference, and right as often as a coin.
        log["accuracy"] = log["accuracy"].astype(float) + 0.5 * log["ties"].astype(float)
    return log


def prompts(results: Results) -> dict[str, Prompt]:
    """Held-out prompts by id."""
    if not (results.reference / PROMPTS).is_file():
        return {}
    return {prompt.id: prompt for prompt in read_prompts(results.reference)}


def samples(folder: Path | None) -> pd.DataFrame:
    """Answers of a checkpoint: columns `prompt, draw, text, ended`; empty where there are none."""
    path = folder / "samples.parquet" if folder else None
    if path is None or not path.is_file():
        return pd.DataFrame({"prompt": [], "draw": [], "text": [], "ended": []})
    return pd.read_parquet(path, columns=["prompt", "draw", "text", "ended"])
