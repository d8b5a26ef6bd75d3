"""The distance of each selected cell from the reference, by several estimates that must agree, and by position in the answer."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pandas as pd
from matplotlib.figure import Figure

from dpobench.analysis.findings import TEST, Configuration, Findings, put
from dpobench.analysis.results import REFERENCE
from dpobench.report.figures import canvas, entry, legend, look, plain
from dpobench.report.metrics import CUT, FORWARD, NOISE_FLOOR, PER_TOKEN, POSITION, SECOND_ESTIMATE, companion
from dpobench.report.section import Section
from dpobench.report.table import Column, Row, Table, interval, number
from dpobench.stats.crossed import Estimate, crossed_mean

# Standard errors of their paired difference beyond which two estimates of one number disagree.
DISAGREE = 4.0
# Share of answers cut before their end above which a distance per sequence is one of beginnings.
MANY_CUT = 0.1
# A distance below this multiple of the noise floor cannot be distinguished from rounding.
_CLEAR = 10.0
# Fewest prompts for which a stretch of positions is drawn.
_FEWEST = 20


@dataclass(frozen=True)
class _Row:
    """Estimates of one selected cell; None where they were not measured."""

    cell: Configuration
    whole: Estimate
    other: Estimate | None
    gap: Estimate | None
    cut: Estimate | None

    @property
    def disagrees(self) -> bool:
        """Whether two estimates of one number differ by more than chance explains."""
        return self.gap is not None and self.gap.se > 0 and abs(self.gap.value) > DISAGREE * self.gap.se


def section(f: Findings) -> Section | None:
    """The section; None where nothing beyond the distance itself was measured."""
    second = companion(f, SECOND_ESTIMATE)
    if f.distance is None or not f.results.groups(second):
        return None
    rows = [row for cell in f.chosen.values() if (row := _row(f, cell, second)) is not None]
    if not rows:
        return None
    floor = noise_floor(f)
    drawn = profile(f)
    caption = (
        "Distance by position in the answer, nats per token: mean over the test prompts whose answers are that long under every seed, "
        "selected cells. Bands are 95 % intervals."
    )
    figures = {"distance_profile": (caption, drawn)} if drawn is not None else {}
    return Section(
        "distance",
        "Distance to the reference",
        [table(f, rows, floor)],
        figures=figures,
        notes=warnings(f, rows, floor, _astray(f, second)),
    )


def _astray(f: Findings, second: str) -> list[str]:
    """Cells that were not selected, and whose two estimates disagree: the frontier shows their distance as well."""
    others = [c for c in f.configurations if c.done and f.chosen.get(c.variant) != c]
    rows = [(c, _row(f, c, second)) for c in others]
    return [f"{c.variant} at β {f.label(c)}" for c, row in rows if row is not None and row.disagrees]


def _row(f: Findings, cell: Configuration, metric: str) -> _Row | None:
    whole = f.estimate(cell.ids, f.distance)
    if whole is None:
        return None
    gap = None
    first, second = (f.results.table(name, cell.ids, None, TEST) for name in (metric, f.distance or ""))
    shared = [prompt for prompt in first.columns if prompt in set(second.columns)]
    if len(shared) > 1:
        gap = crossed_mean([first[shared].to_numpy(dtype=float) - second[shared].to_numpy(dtype=float)])
    return _Row(cell, whole, f.estimate(cell.ids, metric), gap, f.estimate(cell.ids, companion(f, CUT)))


def noise_floor(f: Findings) -> float | None:
    """Largest distance of the reference to itself that rounding alone made, nats; None where it was not measured."""
    measured = f.results.table(companion(f, NOISE_FLOOR), [REFERENCE])
    return float(measured.abs().to_numpy(dtype=float).max()) if measured.size else None


def table(f: Findings, cells: list[_Row], floor: float | None) -> Table:
    """One row per selected cell."""
    rows = []
    for one in cells:
        row: Row = {"variant": one.cell.variant, "beta": one.cell.beta}
        put(row, "per_sequence", one.whole)
        put(row, "per_token", f.estimate(one.cell.ids, companion(f, PER_TOKEN)))
        forward = f.estimate(one.cell.ids, companion(f, FORWARD))
        put(row, "forward", replace(forward, low=max(0.0, forward.low)) if forward else None)
        put(row, "log_ratio", one.other)
        put(row, "gap", one.gap)
        row["gap_in_se"] = one.gap.value / one.gap.se if one.gap and one.gap.se > 0 else None
        put(row, "truncated", one.cut)
        row["noise_floor"] = floor
        row["reading"] = "estimates disagree" if one.disagrees else "within rounding" if _is_noise(one, floor) else ""
        rows.append(row | {"n_prompts": one.whole.n_prompts, "seeds": one.whole.seeds, "level": one.whole.level})
    columns = [
        Column("Variant", "variant"),
        Column("β", "beta"),
        Column("KL, nats per sequence", "per_sequence", 2, interval=True),
        Column("per token", "per_token", 3, interval=True),
        Column("Forward KL", "forward", 2, interval=True),
        Column("Log-ratio estimate", "log_ratio", 2, interval=True),
        Column("less KL", "gap", 2, interval=True, signed=True),
        Column("in SE", "gap_in_se", 1, signed=True),
        Column("Answers cut", "truncated", 2, interval=True),
        Column("Noise floor", "noise_floor", 6),
        Column("Reading", "reading"),
        Column("Prompts", "n_prompts", 0),
        Column("Seeds", "seeds", 0),
    ]
    note = (
        "KL of policy to reference over the whole vocabulary at every position of the policy's answers to the test prompts; per token is "
        "the mean over answers of each answer's mean. The log-ratio of the drawn tokens has the same expectation and is a check "
        f"only: a gap above {DISAGREE:g} standard errors is an error somewhere. Forward KL is of reference to policy on the reference's "
        "answers. The noise floor is the distance of the reference to itself, which rounding alone makes."
    )
    return Table(
        "distance", "Distance to the reference, selected cells", pd.DataFrame(rows, dtype=object), columns, note
    )


def _is_noise(one: _Row, floor: float | None) -> bool:
    return floor is not None and one.whole.value <= _CLEAR * floor


def warnings(f: Findings, cells: list[_Row], floor: float | None, others: Sequence[str] = ()) -> list[str]:
    """Reasons not to use the distances as they are."""
    sentences = []
    apart = [
        f"{one.cell.variant} ({interval(one.gap.value, one.gap.low, one.gap.high, 2, signed=True)} nats, "
        f"{abs(one.gap.value / one.gap.se):.1f} standard errors)"
        for one in cells
        if one.gap is not None and one.disagrees
    ]
    if apart or others:
        sentences.append(
            f"Two estimates of one distance disagree for {', '.join([*apart, *others])}: the samples are not the policy's, or the two "
            "models were computed in different ways. Do not use these distances."
        )
    cut = [f"{one.cell.variant} ({100 * one.cut.value:.0f} %)" for one in cells if one.cut and one.cut.value > MANY_CUT]
    if cut:
        sentences.append(
            f"Answers were cut before their end for {', '.join(cut)}: the distance per sequence counts their beginnings only. "
            "Raise evaluation.max_new_tokens."
        )
    still = [one.cell.variant for one in cells if _is_noise(one, floor)]
    if still:
        sentences.append(
            f"The distance of {', '.join(still)} cannot be distinguished from rounding errors, which are up to {number(floor, 2)} nats."
        )
    return sentences


def profile(f: Findings) -> Figure | None:
    """Mean per token of each stretch of positions."""
    metric = companion(f, POSITION)
    stretches = sorted(f.results.groups(metric), key=lambda group: int(group.partition("-")[0]))
    curves: dict[str, list[tuple[float, Estimate]]] = {}
    for variant, cell in f.chosen.items():
        for stretch in stretches:
            first, _, last = stretch.partition("-")
            estimate = f.estimate(cell.ids, metric, TEST, stretch)
            if estimate is not None and estimate.n_prompts >= _FEWEST:
                curves.setdefault(variant, []).append((0.5 * (int(first) + int(last)) + 1, estimate))
    if not any(len(curve) > 1 for curve in curves.values()):
        return None
    figure, (axis, *_) = canvas(1, 1, 8.2, 3.4)
    for variant, curve in curves.items():
        style, places = look(f, variant), [place for place, _ in curve]
        axis.plot(places, [e.value for _, e in curve], lw=1.4, ms=4, label=entry(f, variant), **style)
        if variant in f.foremost:
            low, high = [max(0.0, e.low) for _, e in curve], [e.high for _, e in curve]
            axis.fill_between(places, low, high, color=style["color"], alpha=0.15, lw=0)
    axis.set_ylim(bottom=0)
    axis.set_xlabel("token of the answer")
    axis.set_ylabel(plain(f"{f.results.label(metric)} (nats per token)"))
    legend(figure, axis)
    return figure
