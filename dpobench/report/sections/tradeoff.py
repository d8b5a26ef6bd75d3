"""The trade-off of each variant: the ranking metric reached at each distance from the reference."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dpobench.analysis.findings import SELECTION, TEST, Findings, put
from dpobench.analysis.points import Point, points
from dpobench.analysis.results import REFERENCE, Array
from dpobench.report.figures import GREY, Look, canvas, entry, legend, log_axis, look, plain
from dpobench.report.section import Section
from dpobench.report.table import Column, Row, Table, number
from dpobench.stats.crossed import Estimate
from dpobench.stats.resample import Ellipse, ellipse
from dpobench.stats.tradeoff import BUDGETS, Cell, Tradeoff, pareto, tradeoff

FEWEST, TARGET = 8, 0.6
NOT_REACHED = "not reached"


def section(f: Findings) -> Section | None:
    """Frontier per variant and Pareto probability per cell."""
    shown, cells, base = _cells(f)
    if not shown:
        return None
    result = tradeoff(cells, base, f.results.control, target=TARGET)
    figures = {"tradeoff": (_CAPTION, _figure(f, shown, cells, result))}
    return Section(
        "tradeoff",
        "Trade-off against the distance",
        [_variants(f, shown, result), _by_cell(f, shown, cells, result)],
        figures=figures,
    )


_CAPTION = "Ranking metric against distance to the reference, on test prompts, every finished cell; small marks are checkpoints within its trainings, where they were scored. Ellipses hold the cell's mean with 95 % (joint bootstrap over prompts and seeds; about 90 % where two or three seeds lie far apart), the dashed steps are the Pareto set of the means."  # noqa: E501


def _cells(f: Findings) -> tuple[list[Point], list[Cell], Array]:
    """Cells with value and distance on both splits, on the test prompts that all of them share, and the reference's values."""
    nothing: tuple[list[Point], list[Cell], Array] = ([], [], np.zeros(0))
    if f.ranking is None or f.distance is None or f.direction == "none":
        return nothing
    sign = -1.0 if f.direction == "lower" else 1.0
    reference = f.results.table(f.ranking, [REFERENCE], None, TEST)
    parts = []
    for p in points(f):
        known = p.findings.results
        tables = [known.table(m, list(p.ids), None, s) for s in (TEST, SELECTION) for m in (f.ranking, f.distance)]
        if all(table.shape[1] >= FEWEST for table in tables):
            parts.append((p, *tables))
    shared = set(reference.columns).intersection(*({*v.columns} & {*d.columns} for _, v, d, _, _ in parts))
    if not parts or len(shared) < FEWEST:
        return nothing
    on = sorted(shared)
    cells = [
        Cell(
            p.cell.variant,
            sign * value[on].to_numpy(dtype=float),
            far[on].to_numpy(dtype=float),
            sign * selection_value.to_numpy(dtype=float).mean(1),
            selection_distance.to_numpy(dtype=float).mean(1),
            p.cell.key,
        )
        for p, value, far, selection_value, selection_distance in parts
    ]
    return [p for p, *_ in parts], cells, sign * reference[on].to_numpy(dtype=float)[0]


def _in_direction(f: Findings, estimate: Estimate) -> Estimate:
    """The estimate in the direction of the metric: frontiers are computed with more as better."""
    if f.direction != "lower":
        return estimate
    return Estimate(
        -estimate.value, -estimate.high, -estimate.low, estimate.se, estimate.df, estimate.n_prompts, estimate.seeds
    )


def _price(estimate: Estimate) -> str:
    ends = [
        number(end, 1) if np.isfinite(end) else NOT_REACHED for end in (estimate.value, estimate.low, estimate.high)
    ]
    return NOT_REACHED if ends[1] == NOT_REACHED else f"{ends[0]} [{ends[1]}, {ends[2]}]"


def _variants(f: Findings, shown: Sequence[Point], result: Tradeoff) -> Table:
    share = f.ranking is not None and f.results.metrics[f.ranking].unit == "share" and f.direction == "higher"
    rows = []
    for variant, front in result.frontiers.items():
        row: Row = {"variant": variant}
        row["frontier"] = "; ".join(shown[i].label for i in front.picked) or "none above the reference"
        put(row, "hypervolume", front.hypervolume)
        put(row, "to_control", front.to_control)
        for budget, value in front.at.items():
            key = f"at_{budget:g}"
            # A frontier without a cell is the reference: its value is no achievement of the variant.
            reached = value if front.picked else None
            put(row, key, f.bounded(_in_direction(f, reached)) if reached else None)
            row[key] = row[key] if reached else NOT_REACHED
        if share:
            row["needed"] = _price(front.needed)
            put(row, "needed_nats", front.needed)
        rows.append(row | {"n_prompts": front.hypervolume.n_prompts, "seeds": front.hypervolume.seeds})
    label = f.results.heading(f.ranking or "")
    columns = [
        Column("Variant", "variant"),
        Column("β on its frontier", "frontier"),
        Column(f"Hypervolume to {result.budget:g} nats", "hypervolume", 3, interval=True, signed=True),
        Column("Less the control's", "to_control", 3, interval=True, signed=True),
        *(
            Column(f"{label} at {budget:g} nat{'s' * (budget != 1)}", f"at_{budget:g}", 2, interval=True)
            for budget in BUDGETS
        ),
        Column(f"Nats for {TARGET:.0%}", "needed"),
        Column("Prompts", "n_prompts", 0),
        Column("Seeds", "seeds", 0),
    ]
    note = (
        f"Hypervolume: mean advantage over the reference from zero to {result.budget:g} nats, on the scale of the square root of the "
        "distance; it is zero up to a variant's nearest cell, so a grid that starts farther out loses: compare variants whose grids "
        "reach alike, or the values at a budget. The cells of a frontier are picked on the selection prompts (each seed is read along "
        "the frontier that the other seeds picked) and read on the test prompts; between neighbouring cells on the straight line in "
        "nats, beyond the last as the last. Not reached: no cell within a factor of two of the budget on its near or on its far side, "
        "none above the reference, or none as high as the target. Intervals and differences are not adjusted for their number."
    )
    return Table("tradeoff_variants", "Trade-off per variant", pd.DataFrame(rows, dtype=object), columns, note)


def _by_cell(f: Findings, shown: Sequence[Point], cells: Sequence[Cell], result: Tradeoff) -> Table:
    rows = []
    for p, cell, member in zip(shown, cells, result.membership, strict=True):
        row: Row = {"variant": p.cell.variant, "beta": p.label}
        put(row, "distance", p.findings.estimate(p.ids, f.distance))
        put(row, "ranking", p.findings.estimate(p.ids, f.ranking))
        row |= {"pareto_probability": float(member), "n_prompts": cell.value.shape[1], "seeds": len(cell.value)}
        rows.append(row)
    columns = [
        Column("Variant", "variant"),
        Column("β", "beta"),
        Column(f.results.heading(f.distance or ""), "distance", 2, interval=True),
        Column(f.results.heading(f.ranking or ""), "ranking", 2, interval=True),
        Column("Pareto probability", "pareto_probability", 2),
        Column("Prompts", "n_prompts", 0),
        Column("Seeds", "seeds", 0),
    ]
    note = (
        "Pareto probability: share of 2,000 joint resamples of prompts and seeds in which no other row is both as near and as good. It "
        "is no p-value: of equal rows, each is in the set in a part of the resamples."
    )
    return Table("tradeoff_cells", "Pareto set", pd.DataFrame(rows, dtype=object), columns, note)


def _figure(f: Findings, shown: Sequence[Point], cells: Sequence[Cell], result: Tradeoff) -> Figure:
    sign = -1.0 if f.direction == "lower" else 1.0
    figure, (axis, *_) = canvas(1, 1, 8.2, 4.4)
    x, y = (
        np.array([part.mean() for part in parts]) for parts in ([c.distance for c in cells], [c.value for c in cells])
    )
    x = np.maximum(x, 1e-3)
    for i, p in enumerate(shown):
        variant, style = p.cell.variant, look(f, p.cell.variant)
        first = next(j for j, other in enumerate(shown) if other.cell.variant == variant) == i
        size = 6 if p.step is None else 3
        axis.plot(x[i], sign * y[i], ls="", ms=size, label=entry(f, variant) if first else "_nolegend_", **style)
        if variant in f.foremost and p.step is None:
            # On the scale of the axis; no resample is nearer than what the axis can show.
            around = ellipse(np.log(x[i]), y[i], np.log(np.maximum(result.distance[i], 1e-3)), result.value[i])
            _ellipse(axis, around, sign, style)
    front = sorted(np.flatnonzero(pareto(x, y)), key=lambda i: x[i])
    axis.step(
        [*x[front], x.max()],
        [*(sign * y[front]), sign * y[front[-1]]],
        where="post",
        color=GREY,
        lw=1.0,
        ls=(0, (4, 3)),
        zorder=1,
        label="Pareto set",
    )
    base = f.estimate([REFERENCE], f.ranking)
    if base is not None:
        axis.axhline(base.value, color=GREY, lw=1.2, label=REFERENCE, zorder=1)
    axis.set_xscale("log")
    # An ellipse of two seeds may span any range: the points decide what is shown.
    axis.set_xlim(x.min() / 3, x.max() * 3)
    if f.results.metrics[f.ranking or ""].unit == "share":
        low, high = axis.get_ylim()
        axis.set_ylim(max(low, -0.02), min(high, 1.02))
    log_axis(axis.xaxis, [float(v) for v in (x.min() / 3, *x, x.max() * 3)])
    metric = f.results.metrics[f.distance or ""]
    axis.set_xlabel(f"{plain(f.results.label(f.distance or ''))} ({plain(metric.unit)})")
    axis.set_ylabel(plain(f.results.label(f.ranking or "")))
    legend(figure, axis)
    return figure


def _ellipse(axis: Axes, around: Ellipse, sign: float, style: Look) -> None:
    across, up = around.edge()
    axis.fill(np.exp(across), sign * up, color=style["color"], alpha=0.13, lw=0, zorder=1)
    axis.plot(np.exp(across), sign * up, color=style["color"], alpha=0.55, lw=0.8, zorder=1)
