"""The end of the training against checkpoints within it: over-optimisation along the steps."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dpobench.analysis.findings import SELECTION, TEST, Configuration, Findings, put
from dpobench.analysis.points import Point, earlier, end
from dpobench.analysis.results import REFERENCE
from dpobench.report.figures import GREY, Line, canvas, entry, legend, log_axis, look, plain
from dpobench.report.metrics import LOG_RATIO, REWARD
from dpobench.report.section import Section
from dpobench.report.sections.optimisation import listed, over_reference
from dpobench.report.sections.training_dynamics import counted
from dpobench.report.table import Column, Row, Table, interval
from dpobench.stats.crossed import Estimate, crossed_mean, share_difference

_CAPTION = "Left: every cell from its first scored checkpoint to the end of its training (the larger mark), test prompts; the selected cells in front. Right: the judge's reward less the reference's along the training, or the ranking metric where the judge gives no rewards; bands are 95 % intervals of the selected cells."  # noqa: E501


def section(f: Findings) -> Section | None:
    """The section, where checkpoints within trainings were scored."""
    cells = [c for c in f.configurations if c.done and earlier(f, c)]
    if not cells or f.ranking is None:
        return None
    selected = [c for c in cells if f.chosen.get(c.variant) == c]
    tables = [
        _table(f, selected, "within", "Along the training: selected cells"),
        _table(f, cells, "within_cells", "Along the training: every cell"),
    ]
    return Section(
        "within", "Along the training", tables, _sentences(f, cells), {"within": (_CAPTION, _figure(f, cells))}
    )


@dataclass(frozen=True)
class Best:
    """The best checkpoint within the trainings of a cell.

    Args:
        point: the one that all trainings together pick, by the ranking metric on the selection prompts.
        of: for each training, by seed, the one that the others pick; where there is one training, the one it picks itself.
    """

    point: Point
    of: Sequence[Point]


def best_earlier(f: Findings, cell: Configuration) -> Best | None:
    """Pick a checkpoint of a cell; None where none was scored.

    A checkpoint that a training picks itself is partly luck of that training, whatever prompts it is then read on: so each training is
    read at the checkpoint that the others pick.
    """
    sign = -1.0 if f.direction == "lower" else 1.0
    checkpoints = earlier(f, cell)
    tables = [p.findings.results.table(f.ranking or "", list(p.ids), None, SELECTION) for p in checkpoints]
    selection = [
        (p, sign * table.to_numpy(dtype=float).mean(1))
        for p, table in zip(checkpoints, tables, strict=True)
        if table.size
    ]
    if not selection:
        return None
    means = np.stack([each for _, each in selection])
    others = means if means.shape[1] == 1 else means.sum(1, keepdims=True) - means
    return Best(selection[int(means.sum(1).argmax())][0], [selection[place][0] for place in others.argmax(0)])


def gained(f: Findings, cell: Configuration, then: Sequence[Point], metric: str | None) -> Estimate | None:
    """The end of a cell's trainings less a checkpoint within each, on the test prompts all have.

    Args:
        f: the findings.
        cell: whose trainings.
        then: for each of them, by seed, where it is compared with its end.
        metric: of the difference.
    """
    if metric is None:
        return None
    now = f.results.table(metric, cell.ids, None, TEST)
    was = [p.findings.results.table(metric, [p.ids[place]], None, TEST) for place, p in enumerate(then)]
    shared = [prompt for prompt in now.columns if all(prompt in table.columns for table in was)]
    if len(shared) < 2:
        return None
    # A seed's end and its checkpoint are one training: their difference has one spread between seeds.
    base = np.concatenate([table[shared].to_numpy(dtype=float) for table in was])
    difference = crossed_mean([now[shared].to_numpy(dtype=float) - base])
    return share_difference(difference) if f.results.metrics[metric].unit == "share" else difference


def _sentences(f: Findings, cells: Sequence[Configuration]) -> list[str]:
    """Cells that were better before their end, and those whose implicit reward rose while the judge's fell."""
    sign, count, better, gaps = -1.0 if f.direction == "lower" else 1.0, 0, [], []
    for cell in cells:
        best = best_earlier(f, cell)
        lost = gained(f, cell, best.of, f.ranking) if best else None
        if best is None or lost is None:
            continue
        count, name = count + 1, f"{cell.variant} at β {best.point.label}"
        if sign * lost.value < 0 and lost.low * lost.high > 0:
            better.append(f"{name} ({interval(lost.value, lost.low, lost.high, 3, signed=True)} by the end)")
        farther, paid = gained(f, cell, best.of, LOG_RATIO), gained(f, cell, best.of, REWARD)
        if farther is not None and paid is not None and farther.low > 0 and paid.high < 0:
            gaps.append(name)
    if not count:
        return []
    metric, single = f.results.label(f.ranking or ""), all(len(c.done) == 1 for c in f.configurations if c.done)
    level = " With one seed this holds for these trainings, not for the methods." if single else ""
    if better:
        sentences = [
            f"Of {count} cells, {len(better)} had a better {metric} before the end than at it: {listed(better, 6)}. Checkpoints are picked "
            "on the selection prompts, for each training by the others, and read on the test prompts; intervals are not adjusted for the "
            f"number of cells.{level}"
        ]
    else:
        sentences = [
            f"The data do not show a better {metric} before the end than at it for any of {count} cells.{level}"
        ]
    if gaps:
        sentences.append(
            f"From the checkpoint named to the end, the policy's implicit reward rose while the judge's fell: {listed(gaps, 6)}. That is "
            "over-optimisation within a training, both intervals clear of zero and not adjusted. Whether a shorter training would do "
            "better was not tried."
        )
    return sentences


def _table(f: Findings, cells: Sequence[Configuration], name: str, title: str) -> Table:
    rows = [_row(f, point) for cell in cells for point in [*earlier(f, cell), end(f, cell)]]
    columns = [
        Column("Variant", "variant"),
        Column("β", "beta"),
        Column("Steps", "taken", 0),
        Column(f.results.heading(f.ranking or ""), "ranking", 2, interval=True),
        Column("End less this", "gained", 3, interval=True, signed=True),
        Column(f.results.heading(f.distance or ""), "distance", 2, interval=True),
        Column("Log-ratio of the policy's answers, nats", "log_ratio", 2, interval=True),
        Column("Judge's reward", "reward", 3, interval=True),
        Column(f.results.heading(f.length or ""), "length", 1, interval=True),
        Column("Prompts", "n_prompts", 0),
        Column("Seeds", "seeds", 0),
    ]
    shown, size = counted(rows, columns, {"n_prompts": "test prompts", "seeds": "seeds"})
    note = size + (
        "Checkpoints are saved within the training, at the learning rate of their step; a training that ended there would have lowered it "
        "first. The log-ratio of an answer that the policy drew is its implicit reward over β."
    )
    return Table(name, title, pd.DataFrame(rows, dtype=object), shown, note, marked="at_end" if rows else "",
                 hidden=("at_end",))  # fmt: skip


def _row(f: Findings, point: Point) -> Row:
    row: Row = {"variant": point.cell.variant, "beta": f.label(point.cell)}
    row |= {"taken": point.steps if point.step is None else point.step, "at_end": point.step is None}
    estimate = point.findings.estimate(point.ids, f.ranking)
    put(row, "ranking", estimate)
    before = [point] * len(point.ids)
    put(row, "gained", gained(f, point.cell, before, f.ranking) if point.step is not None else None)
    for name, metric in (("distance", f.distance), ("log_ratio", LOG_RATIO), ("reward", REWARD), ("length", f.length)):
        put(row, name, point.findings.estimate(point.ids, metric))
    return row | {"n_prompts": estimate.n_prompts if estimate else 0, "seeds": len(point.ids)}


def _figure(f: Findings, cells: Sequence[Configuration]) -> Figure:
    figure, (path, along) = canvas(2, 1, 8.2, 3.6)
    shown: list[float] = []
    for cell in cells:
        points = [*earlier(f, cell), end(f, cell)]
        selected = f.chosen.get(cell.variant) == cell
        width, alpha = (1.6, 0.95) if selected else (0.7, 0.35)
        style = look(f, cell.variant)
        line = Line(color=style["color"], marker=style["marker"], zorder=style["zorder"], lw=width, alpha=alpha)
        label = entry(f, cell.variant) if selected else "_nolegend_"
        shown += _path(f, path, points, {**line, "label": label}, selected)
        _along(f, along, points, line, selected)
    base = f.estimate([REFERENCE], f.ranking)
    if base is not None:
        path.axhline(base.value, color=GREY, lw=1.2, label=REFERENCE, zorder=1)
    if shown:
        path.set_xscale("log")
        log_axis(path.xaxis, shown)
    path.set_xlabel(plain(f.results.label(f.distance or "")))
    path.set_ylabel(plain(f.results.label(f.ranking or "")))
    along.axhline(0, color=GREY, lw=1.2, zorder=1)
    along.set_xlabel("share of the training")
    along.set_ylabel(f"{plain(f.results.label(_paid(f)))} less the reference's")
    legend(figure, path)
    return figure


def _path(f: Findings, axis: Axes, points: Sequence[Point], line: Line, selected: bool) -> list[float]:
    """Draw value against distance; returns the distances."""
    estimates = [[p.findings.estimate(p.ids, metric) for metric in (f.distance, f.ranking)] for p in points]
    at = [(x.value, y.value) for x, y in estimates if x is not None and y is not None and x.value > 0]
    if at:
        without_marks: Line = {**line, "marker": ""}
        last: Line = {**line, "ms": 6.5 if selected else 3, "ls": "", "label": "_nolegend_"}
        axis.plot(*zip(*at, strict=True), **without_marks)
        axis.plot(*at[-1], **last)
    return [x for x, _ in at]


def _paid(f: Findings) -> str:
    return REWARD if f.results.groups(REWARD) else f.ranking or ""


def _along(f: Findings, axis: Axes, points: Sequence[Point], line: Line, selected: bool) -> None:
    shares, gains = [0.0], [(0.0, 0.0, 0.0)]
    for point in points:
        one = over_reference(point.findings, point.ids, _paid(f))
        if one is not None:
            shares.append(1.0 if point.step is None else point.step / point.steps)
            gains.append((one.value, one.low, one.high))
    value, low, high = np.array(gains).T
    with_marks: Line = {**line, "ms": 4 if selected else 0}
    axis.plot(shares, value, **with_marks)
    if selected:
        axis.fill_between(shares, low, high, color=line["color"], alpha=0.13, lw=0)
