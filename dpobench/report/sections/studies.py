"""Studies: each variant under conditions that differ from the main experiment in one thing."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dpobench.analysis.findings import TEST, Configuration, Findings, put, read
from dpobench.analysis.results import REFERENCE, conditions, load
from dpobench.artifacts.records import RunRecord
from dpobench.report.figures import GREY, canvas, entry, legend, log_axis, look, plain
from dpobench.report.metrics import REWARD
from dpobench.report.section import Section
from dpobench.report.table import Column, Row, Table, interval
from dpobench.stats.compare import holm
from dpobench.stats.crossed import Estimate, crossed_difference, share_difference

# Columns: at the beta selected in the condition, at that selected in the main experiment, and two differences.
SELECTED, FIXED, CHANGE, TO_CONTROL = "own", "fixed", "change", "to_control"
# The data set's answer as an opponent.
_CHOSEN = "chosen"


@dataclass(frozen=True)
class Kind:
    """How one kind of study is shown.

    Args:
        title: of its table.
        axis: what is changed, as a column and an axis call it.
        main_value: its value in the main experiment, from a finished run of it.
        sentence: what was done.
        absolute: whether the reference itself differs between the conditions, so that no rate against it may be compared.
    """

    title: str
    axis: str
    main_value: Callable[[RunRecord], float | None]
    sentence: str
    absolute: bool = False


KINDS = {
    "label_noise": Kind(
        "Label noise",
        "Labels flipped",
        lambda run: 0.0,
        "A seeded share of the training labels is flipped, other pairs for every seed; held-out data are unchanged.",
    ),
    "train_size": Kind(
        "Training size",
        "Training pairs",
        lambda run: run.pairs,
        "Each run trains on the first pairs by hash, each smaller set a part of the larger; the same epochs, so fewer steps.",
    ),
    "reference_quality": Kind(
        "Quality of the reference",
        "Share of its training",
        lambda run: 1.0,
        "Start policy and reference were trained for a share of their steps; data and prompts are the same. A "
        "win-rate against each condition's reference would be another quantity in each, so none is shown.",
        absolute=True,
    ),
    "round": Kind(
        "Rounds",
        "Round",
        lambda run: 1,
        "From the second on, each run starts from the policy of the one before and trains on that policy's own answers, as the "
        "judge ranks them. Distances are to the first reference.",
    ),
}


@dataclass(frozen=True)
class Study:
    """One study with the findings of its conditions.

    Args:
        name: what is changed.
        main: findings of the main experiment.
        changed: findings of each condition, by the value that was changed.
    """

    name: str
    main: Findings
    changed: Mapping[float, Findings]

    @property
    def kind(self) -> Kind:
        """How it is shown."""
        return KINDS[self.name]

    @cached_property
    def main_value(self) -> float | None:
        """Value of the main experiment; None where none of its runs has finished."""
        done = [run for c in self.main.configurations for run in c.done]
        return self.kind.main_value(done[0].record) if done else None

    @cached_property
    def points(self) -> dict[float, Findings]:
        """All values in rising order."""
        conditions = dict(self.changed) | ({} if self.main_value is None else {self.main_value: self.main})
        return dict(sorted(conditions.items()))

    @cached_property
    def metric(self) -> tuple[str, str | None]:
        """The metric that is shown, and its group: what ranks, unless the reference itself was changed."""
        results = self.main.results
        if self.kind.absolute and results.groups(REWARD):
            return REWARD, None
        headline = self.main.headline
        if self.kind.absolute and headline and _CHOSEN in results.groups(headline):
            return headline, _CHOSEN
        return self.main.ranking or "", None

    @property
    def label(self) -> str:
        """How tables call the metric."""
        name, group = self.metric
        label = self.main.results.label(name)
        return f"{label[:1].upper()}{label[1:]}" + (f" against {group}" if group else "")


def section(f: Findings, name: str) -> Section | None:
    """The section of one study; None where it was not made.

    Args:
        f: findings of the main experiment.
        name: a key of `KINDS`.
    """
    changed = {
        condition.changed[name]: read(load(f.results.folder, condition))
        for condition in conditions(f.results)
        if set(condition.changed) == {name}
    }
    if not changed or f.ranking is None:
        return None
    study = Study(name, f, changed)
    frame = rows(study)
    figure = (path if name == "round" else curves)(study)
    figures = {} if figure is None else {f"study_{name}": (_caption(study), figure)}
    sentences = [study.kind.sentence, *_references(study), *_sentences(study, frame)]
    return Section(f"study_{name}", study.kind.title, [_table(study, frame)], sentences, figures)


def rows(study: Study) -> pd.DataFrame:
    """One row per variant and value; p-values are adjusted over the table, baselines are not tested."""
    made = [_row(study, v, value, f) for v in study.main.variants for value, f in study.points.items()]
    for name in (CHANGE, TO_CONTROL):
        tested = [(row, p) for row in made if isinstance(p := row[f"p_{name}"], float)]
        for (row, _), adjusted in zip(tested, holm([p for _, p in tested]), strict=True):
            row[f"p_{name}"] = adjusted
    return pd.DataFrame(made, dtype=object)


def _row(study: Study, variant: str, value: float, f: Findings) -> Row:
    cell, main = f.chosen.get(variant), study.main.chosen.get(variant)
    same = next((c for c in f.configurations if main is not None and c.key == main.key), None)
    control = f.chosen.get(study.main.results.control or "")
    row: Row = {"variant": variant, "value": value, "proper": f is study.main}
    row |= {"beta": cell.beta if cell else None, "learning_rate": cell.learning_rate if cell else None}
    row |= {"steps": _mean(cell, "steps"), "pairs": _mean(cell, "pairs")}
    level = _estimate(study, f, cell)
    put(row, SELECTED, level)
    put(row, FIXED, _estimate(study, f, same))
    changed = None if f is study.main else _difference(study, (f, cell), (study.main, main))
    compared = None if cell is control else _difference(study, (f, cell), (f, control))
    for name, difference in ((CHANGE, changed), (TO_CONTROL, compared)):
        put(row, name, _rounded(difference))
        tested = difference is not None and f is not study.main and variant not in study.main.baselines
        row[f"p_{name}"] = difference.p if difference and tested else None
    put(row, "distance", f.estimate(cell.ids, f.distance) if cell else None)
    put(row, "preference", f.estimate(cell.ids, f.preference) if cell else None)
    row |= {"seeds": len(cell.done) if cell else 0, "n_prompts": level.n_prompts if level else 0}
    row["level"] = changed.level if changed else level.level if level else ""
    return row | {"run_ids": " ".join(cell.ids) if cell else ""}


def _mean(c: Configuration | None, field: str) -> float | None:
    values = [getattr(run.record, field) for run in (c.done if c else ())]
    values = [float(value) for value in values if value is not None]
    return sum(values) / len(values) if values else None


def _estimate(study: Study, f: Findings, c: Configuration | None) -> Estimate | None:
    metric, group = study.metric
    return f.estimate(c.ids, metric, TEST, group) if c else None


def _difference(
    study: Study, one: tuple[Findings, Configuration | None], other: tuple[Findings, Configuration | None]
) -> Estimate | None:
    """Metric of one configuration less that of another, of another condition too, on the test prompts that both have."""
    tables = []
    for f, c in (one, other):
        if c is None or not c.ids:
            return None
        tables.append(f.results.table(study.metric[0], c.ids, study.metric[1], TEST))
    common = [prompt for prompt in tables[0].columns if prompt in tables[1].columns]
    if len(common) < 2:
        return None
    difference = crossed_difference([tables[0][common].to_numpy()], [tables[1][common].to_numpy()])
    return share_difference(difference) if study.main.results.metrics[study.metric[0]].unit == "share" else difference


def _rounded(difference: Estimate | None) -> Estimate | None:
    """Two equal means differ by their last bit; and zero has no sign."""
    return None if difference is None else replace(difference, value=round(difference.value, 12) + 0.0)


def _references(study: Study) -> list[str]:
    """How well each reference of a study writes, where it was measured."""
    measured = {value: f.results.plan.measured for value, f in study.points.items() if study.kind.absolute}
    known = {value: one for value, one in measured.items() if one and one.held_out_loss is not None}
    if not known:
        return []
    each = [f"{one.held_out_loss:.2f} nats after {one.steps:,} steps ({value:g})" for value, one in known.items()]
    floor = next(iter(known.values())).floor
    return [
        f"The references' loss on held-out answers, per answer: {'; '.join(each)}; no model can have less than {floor:.2f}."
    ]


def _sentences(study: Study, frame: pd.DataFrame) -> list[str]:
    """The differences that are shown, and how large those that are not shown may be."""
    if study.main_value is None:
        return ["No run of the main experiment has finished: there is nothing to compare with."]
    tested = frame[frame[f"p_{CHANGE}"].notna()]
    if tested.empty:
        return ["No condition has finished yet."]
    single = (tested["level"] != "method").any()
    seeds = int(tested["seeds"].min())
    size = f"{seeds} seed{'s' * (seeds != 1)}, {int(tested['n_prompts'].min()):,} test prompts"
    sentences = [_claims(study, tested, CHANGE, f"the main experiment ({study.main_value:g})", size)]
    control = study.main.results.control
    if frame[f"p_{TO_CONTROL}"].notna().any():
        sentences.append(
            _claims(study, frame[frame[f"p_{TO_CONTROL}"].notna()], TO_CONTROL, f"{control} in its condition", size)
        )
    if single:
        sentences.append("With one seed these are differences of checkpoints, and nothing is claimed of the methods.")
    return sentences


def _claims(study: Study, tested: pd.DataFrame, name: str, whom: str, size: str) -> str:
    sure = tested[tested[f"p_{name}"] < study.main.results.alpha]
    label = study.label.lower() if study.label[1:].islower() else study.label
    if sure.empty:
        widest = max((row[f"{name}_high"] - row[f"{name}_low"]) / 2 for row in tested.to_dict("records"))
        return (
            f"No difference in {label} to {whom} is shown for any variant at any value, Holm over {len(tested)} "
            f"difference{'s' * (len(tested) != 1)} ({size}); "
            f"the widest interval is ± {widest:.3f}, so that smaller differences may be there."
        )
    claims = [
        f"{row['variant']} at {row['value']:g} {interval(row[name], row[f'{name}_low'], row[f'{name}_high'], 3, signed=True)}"
        for row in sure.to_dict("records")
    ]
    rest = len(tested) - len(sure)
    tail = f"; for the other {rest} no difference is shown" if rest else ""
    whose = "" if (sure["level"] == "method").all() else " of these checkpoints"
    return f"{study.label}, difference{whose} to {whom}: {'; '.join(claims)}{tail} (Holm over {len(tested)}; {size})."


def _table(study: Study, frame: pd.DataFrame) -> Table:
    f = study.main
    columns = [
        Column("Variant", "variant"),
        Column(study.kind.axis, "value"),
        Column("β", "beta"),
        Column("Learning rate", "learning_rate") if frame["learning_rate"].nunique() > 1 else None,
        Column("Pairs", "pairs", 0),
        Column("Steps", "steps", 0),
        Column(study.label, SELECTED, 3, interval=True),
        Column("at the β of the main experiment", FIXED, 3, interval=True),
        Column("Difference to the main experiment", CHANGE, 3, interval=True, signed=True),
        Column("p (Holm)", f"p_{CHANGE}", 3),
        Column(f"Difference to {f.results.control}", TO_CONTROL, 3, interval=True, signed=True),
        Column("p (Holm)", f"p_{TO_CONTROL}", 3),
        Column(f.results.label(f.distance or ""), "distance", 2, interval=True) if f.distance else None,
        Column("Held-out accuracy", "preference", 2, interval=True) if f.preference else None,
        Column("Seeds", "seeds", 0),
        Column("Prompts", "n_prompts", 0),
    ]
    note = (
        "Each variant at the β selected in that condition, and at the one selected in the main experiment (marked rows). "
        "Differences are between selected cells, on the same test prompts, seeds crossed with prompts; p-values are adjusted over the "
        "column. Baselines are not tested; the main experiment is tested in its sections."
    )
    if study.kind.absolute:
        note += " Distance and held-out accuracy are measured from each condition's reference."
    shown = [column for column in columns if column]
    return Table(
        f"study_{study.name}",
        f"{study.kind.title}: every variant in every condition",
        frame,
        shown,
        note,
        marked="proper",
        hidden=("proper",),
    )


def _caption(study: Study) -> str:
    where = (
        "against the distance to the first reference, round by round"
        if study.name == "round"
        else "against what was changed"
    )
    return f"{study.kind.title}: {study.label} on test prompts {where}, each variant at its selected β; 95 % intervals."


def curves(study: Study) -> Figure | None:
    """The metric against the study's value, a line and a band per variant."""
    figure, (axis, *_) = canvas(1, 1, 8.2, 3.6)
    drawn = False
    for variant in study.main.variants:
        points = [(value, _estimate(study, f, f.chosen.get(variant))) for value, f in study.points.items()]
        known = [(value, e) for value, e in points if e is not None]
        if not known:
            continue
        drawn, style = True, look(study.main, variant)
        axis.plot(
            [v for v, _ in known],
            [e.value for _, e in known],
            lw=1.4,
            ms=5,
            label=entry(study.main, variant),
            **style,
        )
        values, low, high = [v for v, _ in known], [e.low for _, e in known], [e.high for _, e in known]
        axis.fill_between(values, low, high, color=style["color"], alpha=0.15, lw=0)
    base = [
        (value, f.estimate([REFERENCE], study.metric[0], TEST, study.metric[1])) for value, f in study.points.items()
    ]
    level = [(value, e.value) for value, e in base if e is not None]
    if level:
        axis.plot(*zip(*level, strict=True), color=GREY, lw=1.2, label=REFERENCE, zorder=1)
    _values_axis(study, axis)
    axis.set_xlabel(plain(study.kind.axis.lower()))
    axis.set_ylabel(plain(study.label))
    legend(figure, axis)
    return figure if drawn else None


def _values_axis(study: Study, axis: Axes) -> None:
    values = [float(value) for value in study.points]
    if study.name == "train_size" and len(values) > 1:
        axis.set_xscale("log")
        log_axis(axis.xaxis, values)
    if len(values) <= 8:
        axis.set_xticks(values, [f"{value:g}" for value in values])
        axis.tick_params(axis="x", which="minor", length=0)


def path(study: Study) -> Figure | None:
    """Round by round, the metric against the distance to the first reference."""
    if study.main.distance is None:
        return None
    figure, (axis, *_) = canvas(1, 1, 8.2, 4.2)
    drawn = False
    for variant in study.main.variants:
        points = []
        for number, f in study.points.items():
            cell = f.chosen.get(variant)
            far, level = (f.estimate(cell.ids, f.distance), _estimate(study, f, cell)) if cell else (None, None)
            if far is not None and level is not None:
                points.append((number, far, level))
        if not points:
            continue
        drawn, style = True, look(study.main, variant)
        axis.plot([x.value for _, x, _ in points], [y.value for _, _, y in points], lw=1.2, ms=6,
                  label=entry(study.main, variant), **style)  # fmt: skip
        for number, x, y in points:
            axis.plot([x.low, x.high], [y.value, y.value], color=style["color"], lw=1.0, alpha=0.45)
            axis.plot([x.value, x.value], [y.low, y.high], color=style["color"], lw=1.0, alpha=0.45)
            axis.annotate(
                str(number), (x.value, y.value), (6, 5), textcoords="offset points", fontsize=8, color=style["color"]
            )
    axis.set_xlabel(plain(study.main.results.label(study.main.distance)))
    axis.set_ylabel(plain(study.label))
    legend(figure, axis)
    return figure if drawn else None
