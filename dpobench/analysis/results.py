"""Everything an experiment's folder says, read once: plan, runs and one long table of scores."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd

from dpobench.artifacts import scores as score_files
from dpobench.artifacts.files import MANIFEST, digest, read_json
from dpobench.artifacts.scores import Metric, Role
from dpobench.data.prompts import split_of
from dpobench.errors import Damaged, UserError

HEADLINE, DISTANCE, BENCHMARK, PREFERENCE, LENGTH, DIAGNOSTIC = get_args(Role)
REFERENCE = "reference"
Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Run:
    """One planned training and what became of it.

    Args:
        id: its name in the plan, and of its folder.
        fields: plan entry, overlaid with `run.json` where there is one.
        folder: where its files lie; None where it has left none.
        log: rows of `log.jsonl`, one per step; empty where there is none.
    """

    id: str
    fields: Mapping[str, Any]
    folder: Path | None = None
    log: pd.DataFrame = field(default_factory=pd.DataFrame)

    @property
    def variant(self) -> str:
        """Name of the loss."""
        return str(self.fields["variant"])

    @property
    def seed(self) -> int:
        """Seed of the training."""
        return int(self.fields["seed"])

    @property
    def params(self) -> dict[str, Any]:
        """All hyper-parameters of the loss."""
        return dict(self.fields.get("params") or {})

    @property
    def status(self) -> str:
        """One of done, diverged, failed, or missing: planned, but without a finished folder."""
        return str(self.fields.get("status") or "missing")

    @property
    def condition(self) -> dict[str, Any]:
        """What a study changed for this run: share of flipped labels, training size; empty in the experiment proper."""
        return dict(self.fields.get("condition") or {})

    @property
    def configuration(self) -> str:
        """Key of what it shares with its other seeds: variant, hyper-parameters, learning rate."""
        return digest(self.variant, self.params, self.fields.get("beta"), self.fields.get("learning_rate"))


@dataclass(frozen=True)
class Results:
    """What the report is a function of.

    Args:
        experiment: the merged configuration.
        plan: runs, data counts, what was left out.
        runs: every planned run, in the order of the plan.
        scores: columns `run, prompt, draw, group, metric, value`; the reference's rows have run "reference".
        splits: side of the selection/test split, by prompt.
        metrics: what each metric means.
        settings: settings of each evaluator.
        reference: folder of the reference.
        folder: the experiment's own.
        strangers: run folders that the plan does not name; they are not reported.
        not_finite: scores left out because they were no finite number, by metric.
        within: the same for checkpoints within trainings, whose names `scores.step_of` gives; None where none were scored.
    """

    experiment: Mapping[str, Any]
    plan: Mapping[str, Any]
    runs: tuple[Run, ...]
    scores: pd.DataFrame
    splits: Mapping[str, str]
    metrics: Mapping[str, Metric]
    settings: Mapping[str, Mapping[str, Any]]
    reference: Path
    folder: Path
    strangers: int = 0
    not_finite: Mapping[str, int] = field(default_factory=dict)
    within: "Results | None" = None

    @property
    def alpha(self) -> float:
        """Level of the tests."""
        return float(self.experiment.get("alpha") or self.experiment.get("evaluation", {}).get("alpha") or 0.05)

    def given(self, variant: str) -> Sequence[str]:
        """What of the data a variant read beside prompts, chosen and rejected answers: columns, gold answers."""
        return tuple((self.plan.get("given") or {}).get(variant, ()))

    @property
    def control(self) -> str | None:
        """The variant others are tested against: the declared one, or the first of the plan."""
        declared = self.experiment.get("control")
        return str(declared) if declared else (self.runs[0].variant if self.runs else None)

    def of_role(self, role: str) -> list[str]:
        """Names of the metrics of a role, in alphabetical order."""
        return sorted(name for name, metric in self.metrics.items() if metric.role == role)

    def first(self, role: str) -> str | None:
        """The first metric of a role that has any scores, None where there is none."""
        found = {metric for metric, _ in self._tables}
        return next((name for name in self.of_role(role) if name in found), None)

    def label(self, metric: str) -> str:
        """How tables call a metric."""
        known = self.metrics.get(metric)
        return (known.label if known else "") or metric.replace("_", " ")

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
        known = self.scores
        own = known[(known["metric"] == metric) & known["run"].isin(list(runs))]
        own = own[own["prompt"].map(self.splits).eq(split)]
        wide = own.pivot_table(index="run", columns=["prompt", "draw"], values="value", aggfunc="mean")
        return wide.loc[list(runs)].dropna(axis=1) if set(runs) <= set(wide.index) else pd.DataFrame()


def load(folder: Path, condition: Mapping[str, Any] | None = None) -> Results:
    """Read an experiment's folder.

    Args:
        folder: what `dpobench run --out` was given.
        condition: of a study, one of `conditions`; without it the experiment proper.

    Raises:
        UserError: there is no plan in it.
        Damaged: a file cannot be read.
    """
    if not (folder / "plan.json").is_file():
        raise UserError(
            f"{folder}: no plan.json; name the folder of an experiment (what `dpobench run --out` was given)"
        )
    plan, experiment = read_json(folder / "plan.json"), read_json(folder / "experiment.json")
    wanted = dict(condition or {})
    entries = [entry for entry in plan["runs"] if (entry.get("condition") or {}) == wanted]
    runs = tuple(_run(folder / "runs" / entry["id"], entry) for entry in entries)
    beside = {json.dumps(told["condition"], sort_keys=True): told for told in plan.get("conditions") or ()}
    plan |= beside.get(json.dumps(wanted, sort_keys=True), {})
    reference = folder / "reference" / str(plan.get("reference", ""))
    scored = [(REFERENCE, reference), *((r.id, r.folder) for r in runs if r.folder and r.status == "done")]
    table, lost, metrics, settings = _scores(scored)
    sides: dict[str, str] = {str(prompt): split_of(str(prompt)) for prompt in table["prompt"].unique()}
    known = {entry["id"] for entry in plan["runs"]}
    there = [path for path in (folder / "runs").glob("*/run.json") if path.parent.name not in known]
    found = Results(experiment, plan, runs, table, sides, metrics, settings, reference, folder, len(there), lost)
    within = None if wanted else _within(found)
    lost = dict(Counter(lost) + Counter(within.not_finite if within else {}))
    return replace(found, within=within, not_finite=lost)


def _scores(
    scored: Sequence[tuple[str, Path]],
) -> tuple[pd.DataFrame, dict[str, int], dict[str, Metric], dict[str, dict[str, Any]]]:
    """All scores of some folders in one table; how many were no finite numbers; what metrics mean and how they were measured."""
    frames: list[pd.DataFrame] = []
    metrics: dict[str, Metric] = {}
    settings: dict[str, dict[str, Any]] = {}
    for name, place in scored:
        for evaluator in score_files.present(place):
            frame, meaning = score_files.read(place, evaluator)
            frames.append(frame.assign(run=name))
            metrics |= meaning
            settings.setdefault(evaluator, score_files.settings(place, evaluator))
    empty = pd.DataFrame({name: [] for name in ("run", *score_files.COLUMNS)})
    table = pd.concat(frames, ignore_index=True) if frames else empty
    finite = np.isfinite(table["value"].astype(float))
    lost = {str(name): int(count) for name, count in table.loc[~finite, "metric"].value_counts().sort_index().items()}
    return table[finite].reset_index(drop=True), lost, metrics, settings


def _within(results: Results) -> Results | None:
    """What was measured of the checkpoints within trainings, as many of them as the experiment asks for now."""
    count = int((results.experiment.get("evaluation") or {}).get("checkpoints") or 0)
    scored = [
        (score_files.step_of(run.id, step), score_files.within(run.folder, step))
        for run in results.runs
        if run.folder and run.status == "done"
        for step in score_files.spread(count, int(run.fields["steps"]))
    ]
    table, lost, *_ = _scores(scored)
    if not len(table):
        return None
    reference = results.scores[results.scores["run"] == REFERENCE]
    return replace(results, scores=pd.concat([reference, table], ignore_index=True), not_finite=lost)


def conditions(results: Results) -> list[dict[str, Any]]:
    """What the studies of an experiment changed, in the order of the plan; the experiment proper is not among them."""
    found = [entry.get("condition") or {} for entry in results.plan["runs"]]
    return [one for place, one in enumerate(found) if one and one not in found[:place]]


def _run(folder: Path, entry: Mapping[str, Any]) -> Run:
    if not (folder / "run.json").is_file():
        return Run(entry["id"], dict(entry) | {"status": "missing", "reason": "planned, not run yet"})
    fields = dict(entry) | read_json(folder / "run.json")
    if fields.get("status") == "done" and not (folder / MANIFEST).is_file():
        fields |= {"status": "missing", "reason": "trained, not fully scored yet"}
    return Run(entry["id"], fields, folder, _log(folder / "log.jsonl"))


def _log(path: Path) -> pd.DataFrame:
    if not path.is_file():
        return pd.DataFrame()
    try:
        found = pd.DataFrame(
            [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        )
    except json.JSONDecodeError as error:
        raise Damaged(
            f"{path} is damaged ({error}); remove {path.parent} and run again, only this run is made anew"
        ) from error
    if {"accuracy", "ties"} <= set(found):
        # As on held-out pairs a tie is half right: at its first step a policy is the reference, and right as often as a coin.
        found["accuracy"] = found["accuracy"].astype(float) + 0.5 * found["ties"].astype(float)
    return found


def prompts(results: Results) -> dict[str, dict[str, Any]]:
    """Held-out prompts by id: `{"id", "messages", "chosen"}`."""
    path = results.reference / "prompts.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return {entry["id"]: entry for entry in (json.loads(line) for line in lines if line.strip())}


def samples(folder: Path | None) -> pd.DataFrame:
    """Answers of a checkpoint: columns `prompt, draw, text, ended`; empty where there are none."""
    path = folder / "samples.parquet" if folder else None
    if path is None or not path.is_file():
        return pd.DataFrame({"prompt": [], "draw": [], "text": [], "ended": []})
    return pd.read_parquet(path, columns=["prompt", "draw", "text", "ended"])
