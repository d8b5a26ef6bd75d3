"""An experiment's results as tidy pandas frames."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import pandas as pd

from dpobench.analysis import findings, results
from dpobench.analysis.findings import TEST, Configuration, Findings
from dpobench.analysis.results import REFERENCE
from dpobench.artifacts import scores as score_files
from dpobench.artifacts.records import PlanRecord, RunRecord
from dpobench.data.prompts import split_of
from dpobench.errors import UserError
from dpobench.experiment.studies import describe
from dpobench.stats.crossed import Estimate

SCORE_COLUMNS = (
    "run",
    "variant",
    "beta",
    "seed",
    "condition",
    "evaluator",
    "metric",
    "group",
    "split",
    "prompt",
    "draw",
    "value",
)


@dataclass(frozen=True)
class Results:
    """What the folder of an experiment holds; each frame is read when it is first looked at.

    Args:
        folder: of the experiment.

    Example:
        >>> import dpobench
        >>> results = dpobench.load("results/mine")                                       # doctest: +SKIP
        >>> results.scores.groupby(["variant", "beta", "metric"])["value"].mean()         # doctest: +SKIP
    """

    folder: Path

    @cached_property
    def scores(self) -> pd.DataFrame:
        """Every score: one row per run, metric, group, prompt and draw, never a mean.

        Columns: `run`, its id, "reference" for the reference; `variant`, `beta` and `seed` of the run (missing for the reference);
        `condition`, what a study changed, as text, empty in the main experiment; `evaluator`; `metric`, whose unit and direction
        `metrics` has; `group`, a task, an opponent or another subdivision that must not be averaged over; `split`, "selection" or
        "test"; `prompt`, id of the prompt or document; `draw`, number of the sampled answer; `value`.

        Of the metrics of checkpoints within a training nothing is included.
        """
        frames = []
        for place, record in self._scored():
            for evaluator in score_files.present(place):
                frame, _ = score_files.read(place, evaluator)
                described = {
                    "run": REFERENCE if record is None else record.id,
                    "variant": REFERENCE if record is None else record.variant,
                    "beta": None if record is None else record.beta,
                    "seed": None if record is None else record.seed,
                    "condition": "" if record is None else describe(record.condition),
                    "evaluator": evaluator,
                }
                frames.append(frame.assign(**described))
        if not frames:
            return pd.DataFrame({name: [] for name in SCORE_COLUMNS})
        table = pd.concat(frames, ignore_index=True)
        table["split"] = table["prompt"].map(split_of)
        table["beta"] = pd.to_numeric(table["beta"])
        table["seed"] = table["seed"].astype("Int64")
        return table[list(SCORE_COLUMNS)]

    @cached_property
    def metrics(self) -> pd.DataFrame:
        """What each metric means: index `metric`; columns `evaluator`, `unit`, `better` ("higher", "lower" or "none"), `role`."""
        rows = {}
        for place, _ in self._scored():
            for evaluator in score_files.present(place):
                frame, meaning = score_files.read(place, evaluator)
                for name, metric in results.metrics_by_name(meaning, frame).items():
                    rows[name] = {
                        "metric": name,
                        "evaluator": evaluator,
                        "unit": metric.unit,
                        "better": metric.better,
                        "role": metric.role,
                    }
        return pd.DataFrame(list(rows.values()), columns=["metric", "evaluator", "unit", "better", "role"]).set_index(
            "metric"
        )

    @cached_property
    def runs(self) -> pd.DataFrame:
        """One row per planned run, every hyper-parameter a column.

        Columns: `run`, `variant`, `seed`, `beta`, `unit` of beta, `learning_rate`, `condition`, `status` ("done", "diverged",
        "failed", "unscored" or "missing"), `reason` where it is not done, `steps`, `tokens`, `train_seconds`, `baseline`, `commit`,
        `data_hash`, `model_hash`, `folder`, and `param_NAME` for each hyper-parameter of any variant.
        """
        plan = self._plan
        rows = []
        for record in self._records():
            source = record.provenance
            row = {
                "run": record.id,
                "variant": record.variant,
                "seed": record.seed,
                "beta": record.beta,
                "unit": record.unit,
                "learning_rate": record.learning_rate,
                "condition": describe(record.condition),
                "status": record.status,
                "reason": record.reason,
                "steps": record.steps,
                "tokens": record.tokens,
                "train_seconds": record.seconds.get("train"),
                "baseline": record.variant in plan.baselines,
                "commit": source.commit if source else None,
                "data_hash": source.data_hash if source else None,
                "model_hash": source.model_hash if source else None,
                "folder": str(self.folder / "runs" / record.id),
            }
            rows.append(row | {f"param_{name}": value for name, value in record.params.items()})
        return pd.DataFrame(rows)

    @cached_property
    def leaderboard(self) -> pd.DataFrame:
        """What the report prints: a row per variant at its selected beta, each value with `_low` and `_high` of its interval."""
        return pd.read_csv(self._report_file("tables/leaderboard.csv"))

    @cached_property
    def verdict(self) -> str:
        """The sentence at the head of the report."""
        return self._report_file("verdict.txt").read_text(encoding="utf-8").splitlines()[0]

    @cached_property
    def decisions(self) -> pd.DataFrame:
        """Each candidate against the control at its selected beta, on the test prompts.

        Columns: `variant`, `control`, `metric`, `difference`, `low`, `high` (95 %), `se`, `n_prompts`, `seeds`, `p`, `p_adjusted`
        (Holm), `level` ("method" with two seeds or more, else "checkpoint") and `decision`, as the leaderboard states it.
        """
        stated = {}
        if "verdict" in self.leaderboard:
            stated = dict(zip(self.leaderboard["variant"], self.leaderboard["verdict"], strict=True))
        rows = [
            {
                "variant": variant,
                "control": comparison.control,
                "metric": self._findings.ranking,
                "difference": comparison.estimate,
                "low": comparison.low,
                "high": comparison.high,
                "se": comparison.se,
                "n_prompts": comparison.n_prompts,
                "seeds": comparison.seeds,
                "p": comparison.p,
                "p_adjusted": comparison.p_adjusted,
                "level": comparison.level,
                "decision": stated.get(variant),
            }
            for variant, comparison in self._findings.comparisons.items()
        ]
        return pd.DataFrame(rows)

    @cached_property
    def _plan(self) -> PlanRecord:
        return PlanRecord.read(self.folder)

    @cached_property
    def _findings(self) -> Findings:
        return findings.read(results.load(self.folder))

    def _records(self) -> Iterator[RunRecord]:
        for planned in self._plan.runs:
            yield results.read_run(self.folder / "runs" / planned.id, planned)

    def _scored(self) -> Iterator[tuple[Path, RunRecord | None]]:
        """Folders with scores: the reference's first, then those of finished runs."""
        yield self.folder / "reference" / self._plan.reference, None
        for record in self._records():
            if record.status == "done":
                yield self.folder / "runs" / record.id, record

    def _report_file(self, name: str) -> Path:
        file = self.folder / "report" / name
        if not file.is_file():
            raise UserError(f"{self.folder} holds no report; write it with `dpobench report {self.folder}`")
        return file


def load(folder: str | Path) -> Results:
    """Read an experiment's folder.

    Args:
        folder: what `dpobench run --out` or `dpobench evaluate --out` was given.

    Raises:
        UserError: it holds no experiment, or one of another format.
        Damaged: a file cannot be read.

    Example:
        >>> load("results/mine").leaderboard[["variant", "beta", "win_rate"]]             # doctest: +SKIP
    """
    folder = Path(folder)
    if not PlanRecord.lies_in(folder):
        raise UserError(
            f"{folder}: no plan.json; name the folder of an experiment (what `dpobench run --out` was given)"
        )
    loaded = Results(folder)
    _ = loaded._plan  # a folder of another format is refused here
    return loaded


def compare(first: str | Path, second: str | Path) -> pd.DataFrame:
    """Two experiments variant by variant, each at its selected beta, by the metric that both rank by.

    A difference is given where it means something: both experiments scored on the same held-out inputs, against the same
    reference, by the same judge.

    Args:
        first: folder of an experiment.
        second: folder of another.

    Returns: one row per variant of either; columns `variant`, `metric`, `beta_first`, `first`, `first_low`, `first_high`,
        `seeds_first`, the same for `second`, and `difference` (second less first), `difference_low`, `difference_high`, `p`: over
        prompts and seeds, 95 %, not adjusted for the number of variants.

    Raises:
        UserError: one of them is no experiment, or they rank by different metrics.

    Example:
        >>> compare("results/a", "results/b")[["variant", "first", "second", "difference"]]   # doctest: +SKIP
    """
    sides = [load(first)._findings, load(second)._findings]
    metrics = [side.ranking for side in sides]
    if None in metrics or metrics[0] != metrics[1]:
        names = " and ".join(str(name) for name in metrics)
        raise UserError(
            f"{first} and {second} rank by {names}: only experiments that rank by one metric can be compared"
        )
    both = _joined(*sides) if _measured_alike(*sides) else None
    rows = []
    for variant in dict.fromkeys([*sides[0].chosen, *sides[1].chosen]):
        row: dict[str, str | float | int | None] = {"variant": variant, "metric": metrics[0]}
        cells = [side.chosen.get(variant) for side in sides]
        for name, side, cell in zip(("first", "second"), sides, cells, strict=True):
            value = side.estimate(cell.ids, side.ranking, TEST) if cell else None
            row |= {f"beta_{name}": cell.beta if cell else None, f"seeds_{name}": len(cell.ids) if cell else 0}
            row |= _interval(name, value)
        difference = _difference(both, *cells) if both is not None else None
        rows.append(row | _interval("difference", difference) | {"p": difference.p if difference else None})
    return pd.DataFrame(rows)


def _measured_alike(first: Findings, second: Findings) -> bool:
    """Whether both were scored on one set of held-out inputs, against one reference, by one judge."""
    judges = [{one.needs.get("judge") for one in side.results.settings.values()} for side in (first, second)]
    return first.results.reference.name == second.results.reference.name and judges[0] == judges[1]


def _difference(both: Findings, first: Configuration | None, second: Configuration | None) -> Estimate | None:
    if first is None or second is None:
        return None
    return both.difference([f"second:{run}" for run in second.ids], first.ids)


def _joined(first: Findings, second: Findings) -> Findings:
    """The scores of both experiments in one table; runs of the second have names of their own."""
    others = second.results.scores[second.results.scores["run"] != REFERENCE]
    others = others.assign(run="second:" + others["run"].astype(str))
    scores = pd.concat([first.results.scores, others], ignore_index=True)
    splits = {**second.results.splits, **first.results.splits}
    return Findings(replace(first.results, scores=scores, splits=splits), ())


def _interval(name: str, value: Estimate | None) -> dict[str, float | None]:
    return {
        name: value.value if value else None,
        f"{name}_low": value.low if value else None,
        f"{name}_high": value.high if value else None,
    }
