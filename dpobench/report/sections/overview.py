"""The figures that stand above the sections: trade-off, effect of beta, differences, training, lengths, calibration."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from dpobench.analysis.findings import TEST, Configuration, Findings
from dpobench.analysis.results import REFERENCE
from dpobench.report.figures import GREY, INK, canvas, entry, legend, log_axis, look, plain
from dpobench.report.metrics import CHOSEN_LENGTH, MARGIN
from dpobench.report.sections.training_dynamics import reliability


@dataclass(frozen=True)
class Panel:
    """A metric that is drawn against beta.

    Args:
        metric: its name.
        group: task, opponent or other part of it; None for the main one.
        split: of the prompts; None for all.
    """

    metric: str
    group: str | None = None
    split: str | None = TEST


def draw(f: Findings) -> dict[str, tuple[str, Figure]]:
    """Every figure that the data allow: caption and figure by name."""
    makers: dict[str, tuple[str, Callable[[Findings], Figure | None]]] = {
        "frontier": ("Ranking metric against distance to the reference, on test prompts, every finished cell. Bars are 95 % intervals, a ring marks the selected cell, numbers are β, the dashed steps the Pareto set.", frontier),  # noqa: E501
        "strength": ("Each metric against β, on test prompts (held-out test pairs for accuracy). Bands are 95 % intervals; the grey line is the reference (for the distance it lies at zero, off the scale); a ring marks the selected cell. β has another meaning in every variant: compare shapes, not positions.", strength),  # noqa: E501
        "differences": ("Difference to the control on the same test prompts, each variant at its selected β, with 95 % interval (not adjusted for the family; the p-values of the leaderboard are).", differences),  # noqa: E501
        "dynamics": ("Training of the selected cells: mean over seeds, band from the lowest to the highest seed. Hollow marks at the end: the same on held-out test pairs; a gain in training beyond them does not carry over to new prompts. Log-probabilities are of the training batches. Losses of different variants are different quantities.", dynamics),  # noqa: E501
        "lengths": ("Length of the sampled answers to the test prompts, selected cells against the reference and, dashed, the data's chosen answers to the prompts of held-out test pairs, where they were counted: share of answers at most so long.", lengths),  # noqa: E501
        "calibration": ("Stated probability σ(β × margin) against the share that was right, on held-out test pairs, selected cells, in ten bins; below, the pairs in each: a point of few pairs is noise.", calibration),  # noqa: E501
    }  # fmt: skip
    drawn = {name: (caption, make(f)) for name, (caption, make) in makers.items()}
    return {name: (caption, figure) for name, (caption, figure) in drawn.items() if figure is not None}


def frontier(f: Findings) -> Figure | None:
    """Ranking metric against distance."""
    if f.ranking is None or f.distance is None:
        return None
    points = [(c, f.estimate(c.ids, f.distance), f.estimate(c.ids, f.ranking)) for c in f.configurations if c.done]
    placed = [(c, x, y) for c, x, y in points if x is not None and y is not None and x.value > 0]
    if not placed:
        return None
    figure, (axis, *_) = canvas(1, 1, 8.2, 4.6)
    for c, x, y in placed:
        style, selected = look(f, c.variant), f.chosen.get(c.variant) == c
        low = max(x.low, 0.02 * x.value)
        axis.plot([low, x.high], [y.value, y.value], color=style["color"], lw=1.1, alpha=0.45)
        axis.plot([x.value, x.value], [y.low, y.high], color=style["color"], lw=1.1, alpha=0.45)
        axis.plot(x.value, y.value, ls="", ms=6.5, **style)
        if c.variant not in f.foremost:
            continue
        axis.annotate(
            plain(f.label(c)),
            (x.value, y.value),
            # Labels of different variants stand on different sides of their points, so that near points keep both.
            ((7, 6), (7, -13), (-22, 6), (-22, -13))[f.foremost.index(c.variant) % 4],
            textcoords="offset points",
            fontsize=8,
            color=style["color"],
        )
        if selected:
            axis.plot(x.value, y.value, "o", ms=13, mfc="none", mec=style["color"], mew=1.3)
    for variant in f.variants:
        line_of = sorted((x.value, y.value) for c, x, y in placed if c.variant == variant)
        if line_of:
            axis.plot(*zip(*line_of, strict=True), lw=1.0, alpha=0.6, label=entry(f, variant), **look(f, variant), ms=5)
    _reference_line(f, axis, Panel(f.ranking))
    _pareto_steps(f, axis, [(x.value, y.value) for _, x, y in placed])
    axis.set_xscale("log")
    log_axis(axis.xaxis, [x.value for _, x, _ in placed])
    axis.set_xlabel(f"{plain(f.results.label(f.distance))} ({plain(f.results.metrics[f.distance].unit)})")
    axis.set_ylabel(plain(f.results.label(f.ranking)))
    legend(figure, axis)
    return figure


def _pareto_steps(f: Findings, axis: Axes, points: list[tuple[float, float]]) -> None:
    sign, best, front = (-1 if f.direction == "lower" else 1), -np.inf, []
    for x, y in sorted(points):
        if sign * y > best:
            best = sign * y
            front.append((x, y))
    right = max(x for x, _ in points)
    xs, ys = zip(*[*front, (right, front[-1][1])], strict=True)
    axis.step(xs, ys, where="post", color=GREY, lw=1.0, ls=(0, (4, 3)), zorder=1, label="Pareto set")


def _reference_line(f: Findings, axis: Axes, panel: Panel) -> None:
    base = f.estimate([REFERENCE], panel.metric, panel.split, panel.group)
    if base is not None:
        axis.axhline(base.value, color=GREY, lw=1.2, label=REFERENCE, zorder=1)


def strength(f: Findings) -> Figure | None:
    """The main metrics against beta."""
    return against_beta(f, [Panel(m) for m in (f.headline, f.distance, f.preference, f.length) if m])


def against_beta(f: Findings, panels: Sequence[Panel]) -> Figure | None:
    """Small multiples: metrics against beta, each variant over its grid; None where no cell has a beta above zero."""
    points = [
        (float(c.beta), c) for c in f.configurations if c.done and isinstance(c.beta, (int, float)) and c.beta > 0
    ]
    if not panels or not points:
        return None
    across = 2 if len(panels) <= 4 else 3
    down = -(-len(panels) // across)
    figure, axes = canvas(across, down, 8.2, 2.7 * down + 0.4)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    for axis, panel in zip(axes, panels, strict=False):
        for variant in f.variants:
            _curve(f, axis, panel, [(beta, c) for beta, c in points if c.variant == variant])
        _beta_axis(axis, sorted({beta for beta, _ in points}))
        far = f.distance and [e.value for e in (f.estimate(c.ids, f.distance) for _, c in points) if e is not None]
        if panel.metric == f.distance and far and min(far) > 0:
            axis.set_yscale("log")  # the reference, at zero, is off this scale
            log_axis(axis.yaxis, far)
        else:
            _reference_line(f, axis, panel)
        axis.set_title(plain(f.results.label(panel.metric) + (f", {panel.group}" if panel.group else "")))
        axis.set_xlabel("β")
    legend(figure, axes[0])
    return figure


def _curve(f: Findings, axis: Axes, panel: Panel, cells: Sequence[tuple[float, Configuration]]) -> None:
    """One variant's cells with their intervals, in the order of beta."""
    estimates = [(beta, f.estimate(c.ids, panel.metric, panel.split, panel.group), c) for beta, c in cells]
    points = sorted(((beta, e, c) for beta, e, c in estimates if e is not None), key=lambda point: point[0])
    if not points:
        return
    style, xs = look(f, points[0][2].variant), [beta for beta, _, _ in points]
    # Further hyper-parameters share a beta: then the points stand alone, a line through them would mean nothing.
    alone = len(set(xs)) < len(xs)
    label = entry(f, points[0][2].variant)
    axis.plot(xs, [e.value for _, e, _ in points], lw=0 if alone else 1.4, ms=5, label=label, **style)
    if alone or len(points) == 1:
        for x, e, _ in points:
            axis.plot([x, x], [e.low, e.high], color=style["color"], lw=1, alpha=0.5)
    else:
        axis.fill_between(
            xs, [e.low for _, e, _ in points], [e.high for _, e, _ in points], color=style["color"], alpha=0.15, lw=0
        )
    for x, e, c in points:
        if f.chosen.get(c.variant) == c:
            axis.plot(x, e.value, "o", ms=11, mfc="none", mec=style["color"], mew=1.2)


def _beta_axis(axis: Axes, betas: list[float]) -> None:
    """Log scale with ticks at the values that were tried, as far as there is room."""
    axis.set_xscale("log")
    if len(betas) > 7 or len(betas) < 2:
        log_axis(axis.xaxis, betas)
    else:
        axis.set_xticks(betas, [f"{beta:g}" for beta in betas])
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.tick_params(axis="x", which="minor", length=0)


def differences(f: Findings) -> Figure | None:
    """Forest plot of the primary family."""
    if not f.comparisons:
        return None
    figure, (axis, *_) = canvas(1, 1, 8.2, 1.1 + 0.42 * len(f.comparisons))
    for place, comparison in enumerate(reversed(list(f.comparisons.values()))):
        style = look(f, comparison.variant)
        axis.plot([comparison.low, comparison.high], [place, place], color=style["color"], lw=2, solid_capstyle="butt")
        axis.plot(comparison.estimate, place, ms=7, ls="", **style)
    axis.axvline(0, color=GREY, lw=1.2)
    axis.set_yticks(range(len(f.comparisons)), [plain(c.variant) for c in reversed(list(f.comparisons.values()))])
    axis.set_ylim(-0.6, len(f.comparisons) - 0.4)
    axis.grid(axis="y", visible=False)
    control = next(iter(f.comparisons.values())).control
    axis.set_xlabel(f"{plain(f.results.label(f.ranking or ''))}, difference to {plain(control)}")
    return figure


def dynamics(f: Findings) -> Figure | None:
    """Loss, margin, likelihoods and gradient norm over the steps."""
    panels = [("loss", "Loss"), (MARGIN, "Margin (nats)"), ("accuracy", "Training accuracy"),
              ("chosen_logp", "log p of chosen (nats)"), ("rejected_logp", "log p of rejected (nats)"), ("gradient_norm", "Gradient norm before clipping")]  # fmt: skip  # noqa: E501
    logs = {v: [run.log for run in c.done if len(run.log)] for v, c in f.chosen.items()}
    present = [(key, title) for key, title in panels if any(key in log for ls in logs.values() for log in ls)]
    if not present:
        return None
    rows = (len(present) + 2) // 3
    figure, axes = canvas(3, rows, 8.2, 2.2 * rows + 0.4)
    for axis in axes[len(present) :]:
        axis.set_visible(False)
    for axis, (key, title) in zip(axes, present, strict=False):
        for variant, cell_logs in logs.items():
            table = (
                pd.concat([log.set_index("step")[key].astype(float) for log in cell_logs if key in log], axis=1)
                if cell_logs
                else pd.DataFrame()
            )
            if not len(table):
                continue
            smooth = table.sort_index().rolling(max(1, len(table) // 20), min_periods=1, center=True).mean()
            style = look(f, variant)
            color, label = style["color"], entry(f, variant, f", β {plain(f.label(f.chosen[variant]))}")
            axis.plot(smooth.index, smooth.mean(axis=1), color=color, zorder=style["zorder"], lw=1.3, label=label)
            if smooth.shape[1] > 1:
                axis.fill_between(smooth.index, smooth.min(axis=1), smooth.max(axis=1), color=color, alpha=0.15, lw=0)
            held = f.estimate(f.chosen[variant].ids, {MARGIN: MARGIN, "accuracy": f.preference}.get(key))
            if held is not None:
                axis.plot(
                    smooth.index[-1],
                    held.value,
                    ls="",
                    ms=5.5,
                    mec=color,
                    mfc="none",
                    clip_on=False,
                    marker=style["marker"],
                    zorder=3,
                )
        axis.set_title(title)
        axis.set_xlabel("step")
        if key == "gradient_norm" and all((log[key] > 0).all() for ls in logs.values() for log in ls if key in log):
            axis.set_yscale("log")
            log_axis(axis.yaxis, [float(log[key].median()) for ls in logs.values() for log in ls if key in log])
    legend(figure, axes[0])
    return figure


def lengths(f: Findings) -> Figure | None:
    """Cumulative distribution of answer lengths."""
    if f.length is None:
        return None
    figure, (axis, *_) = canvas(1, 1, 8.2, 3.0)
    shown = [
        (REFERENCE, f.length, [REFERENCE], {"color": GREY, "lw": 2.2}),
        ("the data's chosen", CHOSEN_LENGTH, [REFERENCE], {"color": INK, "lw": 1.4, "ls": (0, (4, 2))}),
        *(
            (entry(f, v), f.length, c.ids, {"color": look(f, v)["color"], "zorder": look(f, v)["zorder"], "lw": 1.4})
            for v, c in f.chosen.items()
        ),
    ]
    drawn = False
    for name, metric, runs, style in shown:
        table = f.results.table(metric, runs, None, TEST)
        values = np.sort(table.to_numpy(dtype=float).ravel())
        if len(values):
            drawn = True
            axis.step(values, np.arange(1, len(values) + 1) / len(values), where="post", label=name, **style)
    axis.set_xlabel(f"{plain(f.results.label(f.length))} ({plain(f.results.metrics[f.length].unit)})")
    axis.set_ylabel("share of answers")
    axis.set_ylim(0, 1.02)
    legend(figure, axis)
    return figure if drawn else None


def calibration(f: Findings) -> Figure | None:
    """Reliability of the implicit preference, and how many pairs each point stands for."""
    curves = [(v, reliability(f, c)) for v, c in f.chosen.items()]
    shown = [(variant, r) for variant, r in curves if r is not None]
    if not shown:
        return None
    figure, (axis, counts) = canvas(1, 2, 5.6, 4.8)
    if (panels := axis.get_gridspec()) is not None:
        panels.set_height_ratios([3, 1])
    axis.plot([0.5, 1], [0.5, 1], color=GREY, lw=1.2, label="perfect")
    for variant, r in shown:
        style = look(f, variant)
        axis.plot(r.confidence, r.accuracy, lw=1.2, ms=5, label=entry(f, variant), **style)
        counts.plot(r.confidence, r.count, lw=1.2, ms=4, **style)
    axis.set_ylabel("share right")
    counts.set_ylabel("pairs × seeds")
    counts.set_ylim(bottom=0)
    counts.set_xlabel("stated probability")
    for each in (axis, counts):
        each.set_xlim(0.49, 1.01)
    legend(figure, axis)
    return figure
