"""Several aims at once: what each cell reaches on each, and which cells no other beats on all of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure

from dpobench.analysis.findings import TEST, Configuration, Findings, put
from dpobench.analysis.results import REFERENCE
from dpobench.report.figures import GREY, Look, canvas, entry, legend, look, plain
from dpobench.report.section import Section
from dpobench.report.table import Column, Table
from dpobench.stats.crossed import Estimate, crossed_difference, share_difference
from dpobench.stats.resample import draws

Array = npt.NDArray[np.float64]
# Names that the evaluator of objectives gives: by a judge, on held-out pairs.
WIN, ACCURACY = "objective_win_rate", "objective_accuracy"
# Beside the win-rate, where verdicts can be missing.
MISSING, WORST, BEST = "objective_missing", "objective_win_rate_worst", "objective_win_rate_best"
RESAMPLES = 2000


@dataclass(frozen=True)
class Aim:
    """One objective.

    Args:
        name: what it is called.
        metric: what measures it.
    """

    name: str
    metric: str

    @property
    def measured(self) -> str:
        """Name and measure, for a header or an axis."""
        return f"{self.name}, {'win-rate' if self.metric == WIN else 'held-out accuracy'}"


@dataclass(frozen=True)
class Point:
    """A cell of the grid, or the reference.

    Args:
        variant: whose it is.
        runs: ids of its finished runs.
        cell: its configuration; None for the reference.
    """

    variant: str
    runs: tuple[str, ...]
    cell: Configuration | None = None


def section(f: Findings) -> Section | None:
    """The section, where objectives were asked for."""
    every = [Point(c.variant, tuple(c.ids), c) for c in f.configurations if c.done] + [Point(REFERENCE, (REFERENCE,))]
    # An aim on which nobody but the reference was judged says nothing.
    aims = [aim for aim in _aims(f) if any(p.cell is not None and _estimate(f, p, aim) for p in every)]
    points = [p for p in every if all(_estimate(f, p, aim) for aim in aims)]
    left_out = _left_out(f, every, aims)
    if len(aims) < 2 or not points:
        return Section("objectives", _TITLE, sentences=left_out) if left_out else None
    chosen = [p for p in points if p.cell is None or f.chosen.get(p.variant) == p.cell]
    front, member = pareto_set(f, points, aims)
    tables = [_selected(f, chosen, aims), _grid(f, points, aims, front, member)]
    figures = {}
    if len(aims) == 2:
        caption = (
            f"{_capital(aims[0].name)} against {aims[1].name}, on test prompts, every finished cell. Bars are 95 % intervals, a ring "
            "marks the selected cell, numbers are β; the dashed line joins the cells that no other beats on both."
        )
        figures = {"objectives": (caption, _scatter(f, points, aims, front))}
    return Section("objectives", _TITLE, tables, [*left_out, *_said(f, chosen, aims)], figures)


_TITLE = "Objectives: several aims at once"


def _left_out(f: Findings, points: Sequence[Point], aims: Sequence[Aim]) -> list[str]:
    """Aims without a verdict on any cell, and cells without one on some aim."""
    asked = list(f.results.experiment.evaluation.objectives)
    seen = dict.fromkeys(aim.name for aim in _aims(f))
    gone = [name for name in dict.fromkeys([*asked, *seen]) if name not in {aim.name for aim in aims}]
    said = [f"Left out, for it has no verdict on any cell: {', '.join(gone)}."] if gone and (seen or aims) else []
    for point in points:
        lacking = [aim.name for aim in aims if _estimate(f, point, aim) is None]
        if lacking and point.cell is not None:
            whose = f"{point.variant} at β = {f.label(point.cell)}"
            said.append(f"Left out: {whose}, which has too few verdicts on {' and '.join(lacking)}.")
    return said


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _aims(f: Findings) -> list[Aim]:
    """In the order in which they were asked for."""
    found = [Aim(group, metric) for metric in (WIN, ACCURACY) for group in f.results.groups(metric)]
    asked = list(f.results.experiment.evaluation.objectives)
    return sorted(found, key=lambda aim: asked.index(aim.name) if aim.name in asked else len(asked))


def _estimate(f: Findings, point: Point, aim: Aim) -> Estimate | None:
    return f.estimate(point.runs, aim.metric, TEST, aim.name)


def undominated(values: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """Points that no other point equals or beats everywhere and beats somewhere.

    Args:
        values: shape [C, K], more is better.

    Returns: shape [C]; `undominated([[1, 0], [0, 1], [0, 0]])` is [True, True, False].
    """
    x = np.asarray(values, dtype=np.float64)
    as_good, better = np.all(x[None] >= x[:, None], axis=-1), np.any(x[None] > x[:, None], axis=-1)
    return np.asarray(~np.any(as_good & better, axis=1))


def pareto_set(f: Findings, points: Sequence[Point], aims: Sequence[Aim]) -> tuple[npt.NDArray[np.bool_], Array]:
    """Which points no other beats on all aims, and in what share of resamples of the prompts and seeds that is so.

    Aims that were judged on the same prompts are resampled together, aims with prompts of their own apart.

    Returns: shape [C] each.
    """
    runs = [run for point in points for run in point.runs]
    tables = {aim.name: f.results.table(aim.metric, list(dict.fromkeys(runs)), aim.name, TEST) for aim in aims}
    drawn: dict[str, Array] = {}
    for place, group in enumerate(_together(tables)):
        shared = sorted(set.intersection(*(set(tables[name].columns) for name in group)))
        cells = [
            np.stack([tables[name].loc[list(p.runs), shared].to_numpy(dtype=np.float64) for name in group])
            for p in points
        ]
        means = draws(cells, RESAMPLES, seed=place)
        drawn |= {name: np.stack([cell[at] for cell in means]) for at, name in enumerate(group)}
    values = np.array([[tables[aim.name].loc[list(p.runs)].to_numpy().mean() for aim in aims] for p in points])
    joint = np.stack([drawn[aim.name] for aim in aims], axis=-1)
    return undominated(values), np.mean([undominated(joint[:, at]) for at in range(RESAMPLES)], axis=0)


def _together(tables: dict[str, pd.DataFrame]) -> list[list[str]]:
    """Aims in groups that share most of their prompts; a few missing verdicts make no other prompts of them."""
    groups: list[list[str]] = []
    for name, table in tables.items():
        own = set(table.columns)
        near = (g for g in groups if 2 * len(own & set(tables[g[0]].columns)) > max(len(own), tables[g[0]].shape[1]))
        if (group := next(near, None)) is not None:
            group.append(name)
        else:
            groups.append([name])
    return groups


def _identity(point: Point) -> dict[str, Any]:
    cell = point.cell
    told = {"beta": cell.beta, "params": cell.params, "learning_rate": cell.learning_rate} if cell else {}
    return {"variant": point.variant, **told, "seeds": len(cell.done) if cell else None}


def _measured(f: Findings, point: Point, aims: Sequence[Aim]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for aim in aims:
        found = _estimate(f, point, aim)
        put(row, aim.name, found)
        row[f"n_{aim.name}"] = found.n_prompts if found else None
        for name, metric in (("missing", MISSING), ("worst", WORST), ("best", BEST)) if aim.metric == WIN else ():
            put(row, f"{aim.name}_{name}", f.estimate(point.runs, metric, TEST, aim.name))
    return row


def _counts(aims: Sequence[Aim], rows: Sequence[dict[str, Any]]) -> list[Column]:
    """One column of prompts where all aims have the same, else one each."""
    if all(len({row[f"n_{aim.name}"] for aim in aims}) == 1 for row in rows):
        return [Column("Prompts", f"n_{aims[0].name}", 0)]
    return [Column(f"Prompts, {aim.name}", f"n_{aim.name}", 0) for aim in aims]


def _selected(f: Findings, points: Sequence[Point], aims: Sequence[Aim]) -> Table:
    """The selected cells, and what each gains and pays against the control."""
    rows, control = [], next((p for p in points if p.variant == f.results.control), None)
    for point in points:
        row = _identity(point) | _measured(f, point, aims)
        if control is not None and point.cell is not None and point != control:
            for aim in aims:
                put(row, f"{aim.name}_difference", _difference(f, point, control, aim))
        rows.append(row)
    columns = [Column("Variant", "variant"), Column("β", "beta"), Column("Other parameters", "params")]
    for aim in aims:
        columns.append(Column(_capital(aim.measured), aim.name, 2, interval=True))
        columns.append(Column(f"Less {f.results.control}", f"{aim.name}_difference", 3, interval=True, signed=True))
        columns += _missing(aim, rows)
    columns += [*_counts(aims, rows), Column("Seeds", "seeds", 0)]
    note = (
        "A missing verdict counts in no win-rate; where there are any, the two bounds count all of them as lost and as won. "
        "Win-rate: share of test prompts on which the objective's judge prefers the answer to the reference's, a tie counting one "
        "half. Held-out accuracy: share of the objective's pairs whose preferred answer the policy raised above the other. β was "
        "selected by the ranking metric of the leaderboard, not by these. Intervals of differences are not adjusted for their number."
    )
    return Table("objectives", "Objectives at the selected strength", pd.DataFrame(rows, dtype=object), columns, note)


def _missing(aim: Aim, rows: Sequence[dict[str, Any]]) -> list[Column]:
    """How many verdicts are missing, and the bounds where there are any."""
    shares = [share for row in rows if (share := row.get(f"{aim.name}_missing")) is not None]
    if not shares:
        return []
    columns = [Column(f"Missing, {aim.name}", f"{aim.name}_missing", 2)]
    if any(shares):
        bounds = (("worst", "lost"), ("best", "won"))
        columns += [Column(f"{_capital(aim.name)}, missing {what}", f"{aim.name}_{name}", 2) for name, what in bounds]
    return columns


def _difference(f: Findings, point: Point, control: Point, aim: Aim) -> Estimate | None:
    runs = list(dict.fromkeys([*point.runs, *control.runs]))
    table = f.results.table(aim.metric, runs, aim.name, TEST)
    if table.shape[1] < 2:
        return None
    own, other = (table.loc[list(one.runs)].to_numpy() for one in (point, control))
    return share_difference(crossed_difference([own], [other]))


def _grid(
    f: Findings, points: Sequence[Point], aims: Sequence[Aim], front: npt.NDArray[np.bool_], member: Array
) -> Table:
    rows = []
    for point, inside, share in zip(points, front, member, strict=True):
        row = _identity(point) | _measured(f, point, aims) | {"pareto": bool(inside), "front": "yes" if inside else ""}
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
        *(Column(_capital(aim.measured), aim.name, 2, interval=True) for aim in aims),
        Column("Pareto", "front"),
        Column("in so many resamples", "membership", 2),
        *_counts(aims, rows),
        Column("Seeds", "seeds", 0),
    ]
    note = (
        "Pareto: no other row is as good on every objective and better on one. The share is over a joint bootstrap of prompts and seeds: "
        "how far that is chance. The set is picked and read on the same test prompts, so its members look better than they are."
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


def _said(f: Findings, points: Sequence[Point], aims: Sequence[Aim]) -> list[str]:
    """Which variants gain on one aim and pay on another, where the intervals say so."""
    said = []
    for point in points:
        if point.cell is None:
            continue
        found = {aim.name: _estimate(f, point, aim) for aim in aims}
        up = [name for name, e in found.items() if e is not None and e.low > 0.5]
        down = [name for name, e in found.items() if e is not None and e.high < 0.5]
        if up and down:
            said.append(
                f"{point.variant} gains on {' and '.join(up)} and loses on {' and '.join(down)}, against the reference."
            )
    return said


def _scatter(f: Findings, points: Sequence[Point], aims: Sequence[Aim], front: npt.NDArray[np.bool_]) -> Figure:
    figure, (axis, *_) = canvas(1, 1, 8.2, 5.0)
    placed = [(p, _estimate(f, p, aims[0]), _estimate(f, p, aims[1])) for p in points]
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
    axis.set_xlabel(plain(aims[0].measured))
    axis.set_ylabel(plain(aims[1].measured))
    legend(figure, axis)
    return figure
