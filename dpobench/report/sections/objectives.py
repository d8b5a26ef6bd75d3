"""Several objectives at once: the result of each cell on each, and the cells that no other beats on all of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure

from dpobench.analysis.findings import TEST, Configuration, Findings, put
from dpobench.analysis.results import REFERENCE
from dpobench.report.figures import GREY, Look, canvas, entry, legend, look, plain
from dpobench.report.metrics import (
    OBJECTIVE_ACCURACY,
    OBJECTIVE_BEST,
    OBJECTIVE_MISSING,
    OBJECTIVE_WIN_RATE,
    OBJECTIVE_WORST,
)
from dpobench.report.section import Section
from dpobench.report.table import Column, Row, Table
from dpobench.stats.crossed import Estimate
from dpobench.stats.resample import draws

Array = npt.NDArray[np.float64]
RESAMPLES = 2000


@dataclass(frozen=True)
class Objective:
    """One objective.

    Args:
        name: as the experiment calls it.
        metric: of its win-rate, or of its accuracy on held-out pairs.
    """

    name: str
    metric: str

    @property
    def measured(self) -> str:
        """Name and measure, for a header or an axis."""
        return f"{self.name}, {'win-rate' if self.metric == OBJECTIVE_WIN_RATE else 'held-out accuracy'}"


@dataclass(frozen=True)
class Point:
    """A cell of the grid, or the reference.

    Args:
        variant: its variant.
        runs: ids of its finished runs.
        cell: its configuration; None for the reference.
    """

    variant: str
    runs: tuple[str, ...]
    cell: Configuration | None = None


def section(f: Findings) -> Section | None:
    """The section, where objectives were requested."""
    every = [Point(c.variant, tuple(c.ids), c) for c in f.configurations if c.done] + [Point(REFERENCE, (REFERENCE,))]
    # An objective on which the reference alone was judged compares nothing.
    objectives = [
        objective
        for objective in _objectives(f)
        if any(p.cell is not None and _estimate(f, p, objective) for p in every)
    ]
    points = [p for p in every if all(_estimate(f, p, objective) for objective in objectives)]
    left_out = _left_out(f, every, objectives)
    if len(objectives) < 2 or not points:
        return Section("objectives", _TITLE, sentences=left_out) if left_out else None
    chosen = [p for p in points if p.cell is None or f.chosen.get(p.variant) == p.cell]
    front, member = pareto_set(f, points, objectives)
    tables = [_selected(f, chosen, objectives), _grid(f, points, objectives, front, member)]
    figures = {}
    if len(objectives) == 2:
        caption = (
            f"{_capital(objectives[0].name)} against {objectives[1].name}, on test prompts, every finished cell. Bars are 95 % "
            "intervals, a ring marks the selected cell, numbers are β; the dashed line joins the cells that no other beats on both."
        )
        figures = {"objectives": (caption, _scatter(f, points, objectives, front))}
    return Section("objectives", _TITLE, tables, [*left_out, *_sentences(f, chosen, objectives)], figures)


_TITLE = "Several objectives at once"
# Columns and metrics of missing verdicts, of which a win-rate can have some.
_BOUNDS = {"missing": OBJECTIVE_MISSING, "worst": OBJECTIVE_WORST, "best": OBJECTIVE_BEST}


def _left_out(f: Findings, points: Sequence[Point], objectives: Sequence[Objective]) -> list[str]:
    """Objectives without a verdict on any cell, and cells without one on some objective."""
    requested = list(f.results.experiment.evaluation.objectives)
    scored = dict.fromkeys(objective.name for objective in _objectives(f))
    gone = [
        name
        for name in dict.fromkeys([*requested, *scored])
        if name not in {objective.name for objective in objectives}
    ]
    sentences = (
        [f"Left out, for it has no verdict on any cell: {', '.join(gone)}."] if gone and (scored or objectives) else []
    )
    for point in points:
        lacking = [objective.name for objective in objectives if _estimate(f, point, objective) is None]
        if lacking and point.cell is not None:
            whose = f"{point.variant} at β = {f.label(point.cell)}"
            sentences.append(f"Left out: {whose}, which has too few verdicts on {' and '.join(lacking)}.")
    return sentences


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _objectives(f: Findings) -> list[Objective]:
    """The objectives that were scored, in the order in which they were requested."""
    scored = [
        Objective(group, metric)
        for metric in (OBJECTIVE_WIN_RATE, OBJECTIVE_ACCURACY)
        for group in f.results.groups(metric)
    ]
    requested = list(f.results.experiment.evaluation.objectives)
    return sorted(
        scored, key=lambda objective: requested.index(objective.name) if objective.name in requested else len(requested)
    )


def _estimate(f: Findings, point: Point, objective: Objective) -> Estimate | None:
    return f.estimate(point.runs, objective.metric, TEST, objective.name)


def undominated(values: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """Points that no other point equals or beats everywhere and beats somewhere.

    Args:
        values: shape [C, K], more is better.

    Returns: shape [C]; `undominated([[1, 0], [0, 1], [0, 0]])` is [True, True, False].
    """
    x = np.asarray(values, dtype=np.float64)
    as_good, better = np.all(x[None] >= x[:, None], axis=-1), np.any(x[None] > x[:, None], axis=-1)
    return np.asarray(~np.any(as_good & better, axis=1))


def pareto_set(
    f: Findings, points: Sequence[Point], objectives: Sequence[Objective]
) -> tuple[npt.NDArray[np.bool_], Array]:
    """Which points no other beats on all objectives, and in what share of resamples of the prompts and seeds that is so.

    Objectives that were judged on the same prompts are resampled together, others apart.

    Returns: shape [C] each.
    """
    runs = [run for point in points for run in point.runs]
    unique = list(dict.fromkeys(runs))
    tables = {one.name: f.results.table(one.metric, unique, one.name, TEST) for one in objectives}
    drawn: dict[str, Array] = {}
    for place, group in enumerate(_together(tables)):
        shared = sorted(set.intersection(*(set(tables[name].columns) for name in group)))
        cells = [
            np.stack([tables[name].loc[list(p.runs), shared].to_numpy(dtype=np.float64) for name in group])
            for p in points
        ]
        means = draws(cells, RESAMPLES, seed=place)
        drawn |= {name: np.stack([cell[at] for cell in means]) for at, name in enumerate(group)}
    values = np.array(
        [[tables[objective.name].loc[list(p.runs)].to_numpy().mean() for objective in objectives] for p in points]
    )
    joint = np.stack([drawn[objective.name] for objective in objectives], axis=-1)
    return undominated(values), np.mean([undominated(joint[:, at]) for at in range(RESAMPLES)], axis=0)


def _together(tables: dict[str, pd.DataFrame]) -> list[list[str]]:
    """Objectives in groups that share most of their prompts: a few missing verdicts do not separate them."""
    groups: list[list[str]] = []
    for name, table in tables.items():
        prompts = set(table.columns)
        near = (
            g for g in groups if 2 * len(prompts & set(tables[g[0]].columns)) > max(len(prompts), tables[g[0]].shape[1])
        )
        if (group := next(near, None)) is not None:
            group.append(name)
        else:
            groups.append([name])
    return groups


def _identity(point: Point) -> Row:
    cell = point.cell
    settings = {"beta": cell.beta, "params": cell.params, "learning_rate": cell.learning_rate} if cell else {}
    return {"variant": point.variant, **settings, "seeds": len(cell.done) if cell else None}


def _measured(f: Findings, point: Point, objectives: Sequence[Objective]) -> Row:
    row: Row = {}
    for objective in objectives:
        estimate = _estimate(f, point, objective)
        put(row, objective.name, estimate)
        row[f"n_{objective.name}"] = estimate.n_prompts if estimate else None
        for name, metric in _BOUNDS.items() if objective.metric == OBJECTIVE_WIN_RATE else ():
            put(row, f"{objective.name}_{name}", f.estimate(point.runs, metric, TEST, objective.name))
    return row


def _counts(objectives: Sequence[Objective], rows: Sequence[Row]) -> list[Column]:
    """One column of prompts where all objectives have the same, else one each."""
    if all(len({row[f"n_{objective.name}"] for objective in objectives}) == 1 for row in rows):
        return [Column("Prompts", f"n_{objectives[0].name}", 0)]
    return [Column(f"Prompts, {objective.name}", f"n_{objective.name}", 0) for objective in objectives]


def _selected(f: Findings, points: Sequence[Point], objectives: Sequence[Objective]) -> Table:
    """The selected cells, and their differences to the control."""
    rows, control = [], next((p for p in points if p.variant == f.results.control), None)
    for point in points:
        row = _identity(point) | _measured(f, point, objectives)
        if control is not None and point.cell is not None and point != control:
            for objective in objectives:
                put(row, f"{objective.name}_difference", _difference(f, point, control, objective))
        rows.append(row)
    columns = [Column("Variant", "variant"), Column("β", "beta"), Column("Other parameters", "params")]
    for objective in objectives:
        columns.append(Column(_capital(objective.measured), objective.name, 2, interval=True))
        columns.append(
            Column(f"Less {f.results.control}", f"{objective.name}_difference", 3, interval=True, signed=True)
        )
        columns += _missing(objective, rows)
    columns += [*_counts(objectives, rows), Column("Seeds", "seeds", 0)]
    note = (
        "A missing verdict counts in no win-rate; where there are any, the two bounds count all of them as lost and as won. "
        "Win-rate: share of test prompts on which the objective's judge prefers the answer to the reference's, a tie counting one "
        "half. Held-out accuracy: share of the objective's pairs whose preferred answer the policy raised above the other. β was "
        "selected by the ranking metric of the leaderboard, not by these. Intervals of differences are not adjusted for their number."
    )
    return Table("objectives", "Objectives at the selected β", pd.DataFrame(rows, dtype=object), columns, note)


def _missing(objective: Objective, rows: Sequence[Row]) -> list[Column]:
    """How many verdicts are missing, and the bounds where there are any."""
    shares = [share for row in rows if (share := row.get(f"{objective.name}_missing")) is not None]
    if not shares:
        return []
    columns = [Column(f"Missing, {objective.name}", f"{objective.name}_missing", 2)]
    if any(shares):
        bounds = (("worst", "lost"), ("best", "won"))
        columns += [
            Column(f"{_capital(objective.name)}, missing {what}", f"{objective.name}_{name}", 2)
            for name, what in bounds
        ]
    return columns


def _difference(f: Findings, point: Point, control: Point, objective: Objective) -> Estimate | None:
    return f.difference(point.runs, control.runs, objective.metric, objective.name)


def _grid(
    f: Findings, points: Sequence[Point], objectives: Sequence[Objective], front: npt.NDArray[np.bool_], member: Array
) -> Table:
    rows = []
    for point, inside, share in zip(points, front, member, strict=True):
        row = (
            _identity(point)
            | _measured(f, point, objectives)
            | {"pareto": bool(inside), "front": "yes" if inside else ""}
        )
        rows.append(
            row
            | {
                "membership": float(share),
                "selected": point.cell is not None and f.chosen.get(point.variant) == point.cell,
            }
        )
    columns = [
        Column("Variant", "variant"),
        Column("β", "beta"),
        Column("Other parameters", "params"),
        Column("Learning rate", "learning_rate") if len({c.learning_rate for c in f.configurations}) > 1 else None,
        *(Column(_capital(objective.measured), objective.name, 2, interval=True) for objective in objectives),
        Column("Pareto", "front"),
        Column("in so many resamples", "membership", 2),
        *_counts(objectives, rows),
        Column("Seeds", "seeds", 0),
    ]
    note = (
        "Pareto: no other row is as good on every objective and better on one. The share is over a joint bootstrap of prompts and seeds, "
        "and shows how far membership is chance. The set is picked and read on the same test prompts, so that its "
        "members look better than they are."
    )
    return Table(
        "objectives_grid",
        "Objectives: every cell, and the joint Pareto set",
        pd.DataFrame(rows, dtype=object),
        [column for column in columns if column],
        note,
        marked="selected",
        hidden=("front",),
    )


def _sentences(f: Findings, points: Sequence[Point], objectives: Sequence[Objective]) -> list[str]:
    """Variants that gain on one objective and lose on another, both intervals clear of one half."""
    sentences = []
    for point in points:
        if point.cell is None:
            continue
        estimates = {objective.name: _estimate(f, point, objective) for objective in objectives}
        up = [name for name, e in estimates.items() if e is not None and e.low > 0.5]
        down = [name for name, e in estimates.items() if e is not None and e.high < 0.5]
        if up and down:
            sentences.append(
                f"{point.variant} gains on {' and '.join(up)} and loses on {' and '.join(down)}, against the reference."
            )
    return sentences


def _scatter(
    f: Findings, points: Sequence[Point], objectives: Sequence[Objective], front: npt.NDArray[np.bool_]
) -> Figure:
    figure, (axis, *_) = canvas(1, 1, 8.2, 5.0)
    placed = [(p, _estimate(f, p, objectives[0]), _estimate(f, p, objectives[1])) for p in points]
    named: set[str] = set()
    for point, x, y in placed:
        if x is None or y is None:
            continue
        style = look(f, point.variant) if point.cell else Look(color=GREY, marker="+", zorder=2)
        axis.plot([x.low, x.high], [y.value, y.value], color=style["color"], lw=1.1, alpha=0.4)
        axis.plot([x.value, x.value], [y.low, y.high], color=style["color"], lw=1.1, alpha=0.4)
        label = REFERENCE if point.cell is None else entry(f, point.variant)
        axis.plot(x.value, y.value, ls="", ms=6.5, label="_nolegend_" if label in named else label, **style)
        named.add(label)
        if point.cell is None or point.variant not in f.foremost:
            continue
        axis.annotate(
            plain(f.label(point.cell)),
            (x.value, y.value),
            (6, 5),
            textcoords="offset points",
            fontsize=8,
            color=style["color"],
        )
        if f.chosen.get(point.variant) == point.cell:
            axis.plot(x.value, y.value, "o", ms=13, mfc="none", mec=style["color"], mew=1.3)
    best = sorted((x.value, y.value) for (_, x, y), inside in zip(placed, front, strict=True) if inside and x and y)
    axis.plot(*zip(*best, strict=True), color=GREY, lw=1.0, ls=(0, (4, 3)), zorder=1, label="Pareto set")
    axis.axhline(0.5, color=GREY, lw=0.8, zorder=1)
    axis.axvline(0.5, color=GREY, lw=0.8, zorder=1)
    axis.set_xlabel(plain(objectives[0].measured))
    axis.set_ylabel(plain(objectives[1].measured))
    legend(figure, axis)
    return figure
