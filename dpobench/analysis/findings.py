"""What the scores say: configurations, the one that stands for each variant, and how it compares with the control."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypeVar, cast

import numpy as np
import numpy.typing as npt

from dpobench.analysis.results import BENCHMARK, DISTANCE, HEADLINE, LENGTH, PREFERENCE, REFERENCE, Results, RunResult
from dpobench.artifacts.records import Cell
from dpobench.artifacts.scores import Metric
from dpobench.stats.compare import Candidate, Comparison, family, select
from dpobench.stats.crossed import (
    Estimate,
    crossed_difference,
    crossed_mean,
    crossed_ratio,
    share_difference,
    share_interval,
)

TEST, SELECTION = "test", "selection"
_Computed = TypeVar("_Computed")
# Variants that one figure shows apart: beyond the first number the eye loses them, and only so many as the second stand out.
MOST, FOREMOST = 12, 6


@dataclass(frozen=True)
class Configuration:
    """A variant with its hyper-parameters and learning rate: one cell of the grid, with all its seeds."""

    key: str
    runs: tuple[RunResult, ...]

    @property
    def variant(self) -> str:
        """Name of the loss."""
        return self.runs[0].variant

    @property
    def beta(self) -> Cell:
        """Regularisation strength; a number, or None for a checkpoint trained elsewhere."""
        return self.runs[0].record.beta

    @property
    def unit(self) -> str:
        """Unit of beta."""
        return self.runs[0].record.unit

    @property
    def learning_rate(self) -> float | None:
        """Peak learning rate; None where it is not known."""
        return self.runs[0].record.learning_rate

    @property
    def params(self) -> str:
        """Hyper-parameters besides beta, as text."""
        strength = self.runs[0].record.strength
        return ", ".join(f"{name}={value}" for name, value in sorted(self.runs[0].params.items()) if name != strength)

    @property
    def done(self) -> list[RunResult]:
        """Runs that trained and were scored, by seed."""
        return sorted((run for run in self.runs if run.status == "done"), key=lambda run: run.seed)

    @property
    def ids(self) -> list[str]:
        """Ids of the finished runs, by seed."""
        return [run.id for run in self.done]

    @property
    def broken(self) -> int:
        """Number of runs that ended without scores."""
        return sum(self.count(status) for status in ("diverged", "failed", "unscored"))

    def count(self, status: str) -> int:
        """Runs of a status."""
        return sum(run.status == status for run in self.runs)

    @property
    def reasons(self) -> str:
        """Why runs did not finish."""
        unfinished = [run for run in self.runs if run.status != "done"]
        return "; ".join(
            f"seed {run.seed} {run.status}: {run.record.reason or 'no reason recorded'}" for run in unfinished
        )


@dataclass(frozen=True)
class Findings:
    """The results, read.

    Args:
        results: what was read.
        configurations: every cell of the grid, in the order of the plan.
    """

    results: Results
    configurations: tuple[Configuration, ...]
    _computed: dict[str, object] = field(default_factory=dict, compare=False, repr=False)

    def once(self, name: str, compute: Callable[[], _Computed]) -> _Computed:
        """What several sections need and takes long to compute, computed once.

        Args:
            name: of the value; always with the same `compute`.
            compute: makes it.
        """
        if name not in self._computed:
            self._computed[name] = compute()
        return cast("_Computed", self._computed[name])

    @cached_property
    def headline(self) -> str | None:
        """Name of the metric that a judge gives, where there is one."""
        return self.results.first(HEADLINE)

    @cached_property
    def distance(self) -> str | None:
        """Name of the distance to the reference."""
        return self.results.first(DISTANCE)

    @cached_property
    def preference(self) -> str | None:
        """Name of the metric on held-out pairs."""
        return self.results.first(PREFERENCE)

    @cached_property
    def length(self) -> str | None:
        """Name of the metric of the answers' length."""
        return self.results.first(LENGTH)

    @property
    def ranking(self) -> str | None:
        """The metric that ranks: the headline, or the one on held-out pairs where there was no judge."""
        return self.headline or self.preference

    @property
    def direction(self) -> str:
        """Which direction of the ranking metric is better."""
        return self.results.metrics[self.ranking].better if self.ranking else "none"

    @cached_property
    def unequal_trials(self) -> bool:
        """Whether the variants had different numbers of configurations to choose from; baselines are not chosen from."""
        return len(set(Counter(c.variant for c in self.configurations if c.variant in self.candidates).values())) > 1

    @property
    def variants(self) -> list[str]:
        """Variants in the order of the plan."""
        return list(dict.fromkeys(c.variant for c in self.configurations))

    @cached_property
    def baselines(self) -> list[str]:
        """Variants that were trained along with the candidates, at their defaults; nothing is claimed of them."""
        return [v for v in self.variants if v in self.results.plan.baselines]

    @cached_property
    def candidates(self) -> list[str]:
        """Variants that are compared."""
        return [v for v in self.variants if v not in self.baselines]

    @cached_property
    def foremost(self) -> list[str]:
        """The variants that figures tell apart: all of them, or the control and the best where they are too many for that."""
        if len(self.variants) <= MOST:
            return self.variants
        sign = -1 if self.direction == "lower" else 1
        values = {v: self.estimate(c.ids, self.ranking) for v, c in self.chosen.items()}
        ranked = sorted((v for v in values if values[v]), key=lambda v: (-sign * values[v].value, v))  # type: ignore[union-attr]
        first = [v for v in ranked if v != self.results.control][: FOREMOST - 1]
        return [v for v in self.variants if v in first or v == self.results.control]

    def label(self, configuration: Configuration) -> str:
        """Short name of a cell within its variant."""
        beta, rate = configuration.beta, configuration.learning_rate
        # A checkpoint trained elsewhere tells neither.
        parts = [f"{beta:g}" if isinstance(beta, float) else str(beta)] if beta is not None else []
        if len({c.params for c in self.configurations if c.variant == configuration.variant}) > 1:
            parts.append(configuration.params)
        if len({c.learning_rate for c in self.configurations if c.learning_rate is not None}) > 1 and rate is not None:
            parts.append(f"lr {rate:g}")
        return ", ".join(parts)

    def estimate(
        self, runs: Sequence[str], metric: str | None, split: str | None = TEST, group: str | None = None
    ) -> Estimate | None:
        """Mean of a metric over prompts and runs, with its interval; None where nothing was measured."""
        if metric is None or not runs:
            return None
        table = self.results.table(metric, list(runs), group, split)
        if table.shape[1] < 2:
            return None
        mean = crossed_mean([table.to_numpy()])
        declared: Metric | None = self.results.metrics.get(metric)
        if declared and declared.unit == "share":
            return share_interval(mean)
        # A distance and a length are never negative: with few seeds the t interval may be, the truth is not.
        never_negative = metric in (self.distance, f"{self.distance}_per_token", self.length)
        return replace(mean, low=max(mean.low, 0.0)) if never_negative else mean

    def bounded(self, estimate: Estimate) -> Estimate:
        """A value of the ranking metric with an interval that stays where the metric can be."""
        declared = self.results.metrics.get(self.ranking or "")
        if declared is None or declared.unit != "share":
            return estimate
        return replace(estimate, low=min(max(estimate.low, 0.0), 1.0), high=max(min(estimate.high, 1.0), 0.0))

    def length_ratio(self, runs: Sequence[str]) -> Estimate | None:
        """Length of the answers over the reference's on the same test prompts."""
        if self.length is None or not runs:
            return None
        table = self.results.table(self.length, list(dict.fromkeys([*runs, REFERENCE])), None, TEST)
        if table.shape[1] < 2 or table.loc[REFERENCE].mean() == 0:
            return None
        ratio = crossed_ratio(table.loc[list(runs)].to_numpy(), table.loc[REFERENCE].to_numpy())
        return replace(ratio, low=max(ratio.low, 0.0))

    @cached_property
    def tasks(self) -> list[tuple[str, str]]:
        """Benchmark metrics and their tasks."""
        return [(name, group) for name in self.results.of_role(BENCHMARK) for group in self.results.groups(name)]

    def task_deltas(self, runs: Sequence[str]) -> dict[tuple[str, str], npt.NDArray[np.float64]]:
        """Per task, score less the reference's on the same documents: arrays [S, N]. All documents count, no split."""
        deltas = {}
        for metric, task in self.tasks if runs else ():
            table = self.results.table(metric, list(dict.fromkeys([*runs, REFERENCE])), task)
            if table.shape[1] > 1:
                deltas[metric, task] = table.loc[list(runs)].to_numpy() - table.loc[REFERENCE].to_numpy()
        return deltas

    def benchmark_delta(self, runs: Sequence[str]) -> Estimate | None:
        """Mean delta to the reference over the tasks, each weighing the same; only shares where more is better are averaged."""
        averaged = {name for name, m in self.results.metrics.items() if m.unit == "share" and m.better == "higher"}
        strata = [delta for (metric, _), delta in self.task_deltas(runs).items() if metric in averaged]
        return share_difference(crossed_mean(strata)) if strata else None

    @cached_property
    def chosen(self) -> dict[str, Configuration]:
        """The configuration that stands for each variant, picked on the selection prompts."""
        by_key = {c.key: c for c in self.configurations}
        picked = select(
            [self._candidate(c) for c in self.configurations], "lower" if self.direction == "lower" else "higher"
        )
        return {variant: by_key[picked[variant].configuration] for variant in self.variants if variant in picked}

    def _candidate(self, c: Configuration) -> Candidate:
        value = self.estimate(c.ids, self.ranking, SELECTION)
        far = self.estimate(c.ids, self.distance, SELECTION)
        broken = c.broken > 0
        if value is None:
            return Candidate(c.key, c.variant, 0.0, 0.0, eligible=False, complete=False)
        complete = len(c.done) == len(c.runs)
        return Candidate(c.key, c.variant, value.value, value.se, far.value if far else None, not broken, complete)

    def difference(
        self,
        runs: Sequence[str],
        others: Sequence[str],
        metric: str | None = None,
        group: str | None = None,
        split: str | None = TEST,
    ) -> Estimate | None:
        """A metric of some runs less that of others, or of the reference, on the prompts that all of them have.

        Args:
            runs: ids, by seed.
            others: ids, or the reference's name alone.
            metric: its name; the ranking metric where none is given.
            group: task, opponent or other part of it; the main one where none is given.
            split: side of the prompts; None for all.

        Returns: the paired difference, cut at -1 and 1 for shares; None where fewer than two prompts are shared.
        """
        metric = metric or self.ranking
        if metric is None or not runs or not others:
            return None
        table = self.results.table(metric, list(dict.fromkeys([*runs, *others])), group, split)
        if table.shape[1] < 2:
            return None
        scores, base = table.loc[list(runs)].to_numpy(), table.loc[list(others)].to_numpy()
        # The reference is one given model, no sample of trainings: only the runs' seeds spread.
        given = list(others) == [REFERENCE]
        difference = crossed_mean([scores - base]) if given else crossed_difference([scores], [base])
        return share_difference(difference) if self.results.metrics[metric].unit == "share" else difference

    @cached_property
    def comparisons(self) -> Mapping[str, Comparison]:
        """The primary family: every candidate but the control, at its chosen beta."""
        control = self.chosen.get(self.results.control or "")
        if control is None:
            return {}
        cells = {v: c for v, c in self.chosen.items() if v != control.variant and v in self.candidates}
        differences = {v: self.difference(c.ids, control.ids) for v, c in cells.items()}
        return family({v: d for v, d in differences.items() if d is not None}, control.variant)


def read(results: Results) -> Findings:
    """Group the runs of an experiment into configurations."""
    cells: dict[str, list[RunResult]] = {}
    for run in results.runs:
        cells.setdefault(run.configuration, []).append(run)
    return Findings(results, tuple(Configuration(key, tuple(runs)) for key, runs in cells.items()))


def put(row: dict[str, Cell], name: str, estimate: Estimate | None) -> None:
    """Add an estimate and its interval to a row of a table: columns `name`, `name_low` and `name_high`."""
    row[name] = estimate.value if estimate else None
    row[f"{name}_low"] = estimate.low if estimate else None
    row[f"{name}_high"] = estimate.high if estimate else None
