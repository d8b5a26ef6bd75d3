"""Every metric that no other section reads, whichever evaluator gave it: all that is known of it is its declaration."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from dpobench.analysis.findings import SELECTION, TEST, Configuration, Findings, put
from dpobench.analysis.results import REFERENCE
from dpobench.artifacts.scores import Metric
from dpobench.report.metrics import read_somewhere
from dpobench.report.section import Section
from dpobench.report.sections.overview import Panel, against_beta
from dpobench.report.table import Column, Row, Table
from dpobench.stats.compare import holm
from dpobench.stats.crossed import Estimate

# Panels of the figure; the table has all metrics.
MOST = 12


@dataclass(frozen=True)
class Measure:
    """One metric, or one group of it (a task, an opponent), with its declaration.

    Args:
        metric: its name.
        group: task, opponent or other part that is not averaged over; empty where there are none.
        declared: unit and direction.
        split: TEST where it is of the prompts that beta was selected on; None where it is of others, which all count.
    """

    metric: str
    group: str
    declared: Metric
    split: str | None

    def estimate(self, f: Findings, runs: Sequence[str]) -> Estimate | None:
        """Mean over prompts and runs; None where nothing was measured."""
        return f.estimate(runs, self.metric, self.split, self.group)

    def difference(self, f: Findings, runs: Sequence[str], others: Sequence[str]) -> Estimate | None:
        """Paired difference on the prompts that all of these runs have."""
        return f.difference(runs, others, self.metric, self.group, self.split)


def section(f: Findings) -> Section | None:
    """The section; None where every metric is read by another one."""
    measures = unread(f)
    if not measures:
        return None
    tables = [selected(f, measures), grid(f, measures)]
    panels = [
        Panel(m.metric, m.group, m.split) for m in measures if any(m.estimate(f, c.ids) for c in f.configurations)
    ]
    figure = against_beta(f, panels[:MOST]) if panels else None
    caption = (
        "Each further metric against β, each variant over its grid. Bands are 95 % intervals; the grey line is the reference; a ring marks "
        "the selected cell. β has another meaning in every variant."
    )
    if len(panels) > MOST:
        caption += f" The first {MOST} of {len(panels)}; the table has all."
    figures = {"further_metrics": (caption, figure)} if figure else {}
    sentences = ["Metrics that no other section shows. They rank no variant and select no β."]
    return Section("further", "Further metrics", [table for table in tables if len(table.frame)], sentences, figures)


def unread(f: Findings) -> list[Measure]:
    """The metrics that no other section reads, by name and group."""
    selection = set(f.results.table(f.ranking, [REFERENCE], None, SELECTION).columns) if f.ranking else set()
    measures, read = [], read_somewhere(f)
    for metric in sorted(set(f.results.scores["metric"].astype(str)) - read):
        declared = f.results.metrics[metric]
        rows = f.results.scores[f.results.scores["metric"] == metric]
        for group in f.results.groups(metric):
            shared = selection & set(rows.loc[rows["group"] == group, "prompt"])
            measures.append(Measure(metric, group, declared, TEST if shared else None))
    return measures


def selected(f: Findings, measures: Sequence[Measure]) -> Table:
    """The selected cell of each variant and the reference: value, difference to the control, effect of beta."""
    rows: list[Row] = []
    tested: list[tuple[Row, Measure, Estimate]] = []
    control = f.chosen.get(f.results.control or "")
    for measure in measures:
        for variant, cell in f.chosen.items():
            estimate = measure.estimate(f, cell.ids)
            if estimate is None:
                continue
            row = _row(f, measure, variant, f.label(cell), estimate)
            compared = control is not None and cell is not control
            difference = measure.difference(f, cell.ids, control.ids) if control and compared else None
            put(row, "difference_to_control", difference)
            row |= {"p": None, "p_adjusted": None, "reading": "" if compared else "control"}
            if difference is not None and variant not in f.baselines:
                row["p"] = difference.p
                tested.append((row, measure, difference))
            ends = beta_ends(f, cell)
            row["betas"] = f"{ends[0].beta:g} to {ends[1].beta:g}" if ends else None
            put(row, "beta_effect", measure.difference(f, ends[1].ids, ends[0].ids) if ends else None)
            rows.append(row)
        base = measure.estimate(f, [REFERENCE])
        if base is not None:
            rows.append(_row(f, measure, REFERENCE, "", base) | {"seeds": None})
    # Each metric is a question that stands alone: further evaluators must not make its answer less sure.
    for metric in dict.fromkeys(measure.metric for measure in measures):
        family = [one for one in tested if one[1].metric == metric]
        for (row, measure, difference), p in zip(family, holm([d.p for *_, d in family]), strict=True):
            row["p_adjusted"], row["reading"] = p, _reading(f, measure.declared, difference, p)
    columns = [
        Column("Metric", "label"),
        Column("Of", "group"),
        Column("Unit", "unit"),
        Column("Better", "better"),
        Column("Variant", "variant"),
        Column("β", "beta"),
        Column("Value", "value", 3, interval=True),
        Column(f"Difference to {f.results.control}", "difference_to_control", 3, interval=True, signed=True),
        Column("p (Holm)", "p_adjusted", 3),
        Column("Reading", "reading"),
        Column("β over the grid", "betas"),
        Column("Value at the largest β less that at the smallest", "beta_effect", 3, interval=True, signed=True),
        Column("Prompts", "n_prompts", 0),
        Column("Seeds", "seeds", 0),
    ]
    note = (
        "Selected cells, on test prompts, or on all prompts where a metric is of others than those β was selected on. Unit and direction "
        "are as the evaluator declares them. Differences are on the same prompts; p-values are adjusted within each metric, baselines are "
        "not tested, and the effects of β are not adjusted. Both ends of the grid have the other parameters of the selected cell."
    )
    return Table("further_metrics", "Further metrics, selected cells", pd.DataFrame(rows, dtype=object), columns, note)


def grid(f: Findings, measures: Sequence[Measure]) -> Table:
    """Every finished cell."""
    rows: list[Row] = []
    for measure in measures:
        for cell in f.configurations:
            estimate = measure.estimate(f, cell.ids)
            if estimate is not None:
                row = _row(f, measure, cell.variant, f.label(cell), estimate)
                rows.append(row | {"selected": f.chosen.get(cell.variant) is cell})
    columns = [
        Column("Metric", "label"),
        Column("Of", "group"),
        Column("Unit", "unit"),
        Column("Variant", "variant"),
        Column("β", "beta"),
        Column("Value", "value", 3, interval=True),
        Column("Prompts", "n_prompts", 0),
        Column("Seeds", "seeds", 0),
    ]
    frame, marked = pd.DataFrame(rows, dtype=object), "selected" if rows else ""
    return Table("further_metrics_grid", "Further metrics, every cell", frame, columns, marked=marked)


def beta_ends(f: Findings, cell: Configuration) -> tuple[Configuration, Configuration] | None:
    """The finished cells with the smallest and the largest beta that share all else with a cell; None where there is one beta."""
    alike = [
        (float(c.beta), c) for c in f.configurations
        if (c.variant, c.params, c.learning_rate) == (cell.variant, cell.params, cell.learning_rate)
        and c.done and isinstance(c.beta, (int, float))
    ]  # fmt: skip
    ordered = [c for _, c in sorted(alike, key=lambda pair: pair[0])]
    return (ordered[0], ordered[-1]) if len(ordered) > 1 else None


def _row(f: Findings, measure: Measure, variant: str, beta: str, estimate: Estimate) -> Row:
    row: Row = {"metric": measure.metric, "label": f.results.label(measure.metric), "group": measure.group}
    row |= {"unit": measure.declared.unit, "better": measure.declared.better, "variant": variant, "beta": beta}
    put(row, "value", estimate)
    return row | {"n_prompts": estimate.n_prompts, "seeds": estimate.seeds, "level": estimate.level}


def _reading(f: Findings, declared: Metric, difference: Estimate, p_adjusted: float) -> str:
    if p_adjusted >= f.results.alpha:
        return "no difference shown"
    higher = difference.value > 0
    if declared.better == "none":
        reading = f"{'higher' if higher else 'lower'} than {f.results.control}"
    else:
        reading = f"{'better' if higher == (declared.better == 'higher') else 'worse'} than {f.results.control}"
    return reading if difference.level == "method" else f"{reading} (this checkpoint only)"
