"""Held-out pairs in detail: changes of their likelihood, and whether the ranking is more than a preference for long answers."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from dpobench.analysis.findings import TEST, Findings, put
from dpobench.analysis.results import REFERENCE
from dpobench.report.figures import BACK, PALETTE, canvas, plain
from dpobench.report.metrics import ACCURACY, LENGTH_DIFFERENCE, MEAN_ACCURACY, OWN_ACCURACY
from dpobench.report.section import Section
from dpobench.report.sections.training_dynamics import QUADRANTS, counted
from dpobench.report.sections.training_dynamics import quadrants as shares_of
from dpobench.report.table import Column, Row, Table
from dpobench.stats.crossed import crossed_mean, share_difference, share_interval

STRATA = {"longer": 1.0, "equal": 0.0, "shorter": -1.0}
# From the desired quadrant to the undesired one.
SHADES = (PALETTE[2], PALETTE[5], BACK, PALETTE[1])
_UNITS = {"pairs": "held-out test prompts with pairs", "seeds": "seeds"}


def section(f: Findings) -> Section | None:
    """The section, where held-out pairs were scored."""
    tables, figure = [accuracies(f), by_length(f)], quadrants(f)
    if not any(len(table.frame) for table in tables) and figure is None:
        return None
    caption = (
        "Held-out test pairs of the selected cells by the change of the log-probability of both answers from the reference. "
        "Where both fall, the probability went to texts that nobody labelled."
    )
    return Section(
        "pairs", "Held-out pairs", tables, _sentences(tables[0]), {"quadrants": (caption, figure)} if figure else {}
    )


def _sentences(table: Table) -> list[str]:
    """Variants that are not shown to rank better than length does."""
    if "over_length_low" not in table.frame:
        return []
    blind = [row["variant"] for row in table.frame.to_dict("records") if (row["over_length_low"] or 0) <= 0]
    if not blind:
        return []
    return [f"Not shown to rank held-out pairs better than length alone does: {', '.join(map(str, blind))}."]


def accuracies(f: Findings) -> Table:
    """The share of pairs ranked as people did, by each reading of a reward, and what length alone would have given."""
    lengths = per_pair(f, LENGTH_DIFFERENCE, REFERENCE)
    alone = (np.sign(lengths) + 1).div(2).groupby(level="prompt").mean()
    # Which way length goes is read off the same pairs: the better of both rules, as favourable to length as can be.
    rule = "shorter" if len(alone) and alone.mean() < 0.5 else "longer"
    alone, rows = (1 - alone if rule == "shorter" else alone), []
    for variant, c in f.chosen.items():
        row: Row = {"variant": variant, "beta": c.beta}
        for name in (ACCURACY, MEAN_ACCURACY, OWN_ACCURACY):
            put(row, name, f.estimate(c.ids, name))
        table = f.results.table(ACCURACY, c.ids, None, TEST)
        shared = [prompt for prompt in table.columns if prompt in alone.index]
        if len(shared) < 2:
            continue
        baseline, ranked = alone[shared].to_numpy(dtype=float), table[shared].to_numpy(dtype=float)
        put(row, "by_length", share_interval(crossed_mean([baseline[None]])))
        put(row, "over_length", share_difference(crossed_mean([ranked - baseline])))
        rows.append(row | {"pairs": len(shared), "seeds": len(c.ids)})
    columns = [
        Column("Variant", "variant"),
        Column("β", "beta"),
        Column("By margin", ACCURACY, 3, interval=True),
        Column("By margin per token", MEAN_ACCURACY, 3, interval=True),
        Column("By the loss itself", OWN_ACCURACY, 3, interval=True),
        Column(f"By length alone ({rule} wins)", "by_length", 3, interval=True),
        Column("Margin less length alone", "over_length", 3, interval=True, signed=True),
        Column("Pairs", "pairs", 0),
        Column("Seeds", "seeds", 0),
    ]
    columns, size = counted(rows, columns, _UNITS)
    note = size + (
        "Share of held-out test pairs on which the chosen answer comes first. By the loss itself: the loss is smaller than with both "
        "answers exchanged, whatever reward the loss defines; only for losses that need nothing but log-probabilities."
    )
    title = "Accuracy on held-out pairs"
    return Table("pair_accuracy", title, pd.DataFrame(rows, dtype=object), columns, note)


def by_length(f: Findings) -> Table:
    """Accuracy by margin where the chosen answer is the longer one, of equal length, and the shorter one."""
    lengths = per_pair(f, LENGTH_DIFFERENCE, REFERENCE)
    side, rows = np.sign(lengths), []
    for variant, c in f.chosen.items():
        scored = [per_pair(f, ACCURACY, run) for run in c.ids]
        row: Row = {"variant": variant, "beta": c.beta, "seeds": len(c.ids)}
        for name, sign in STRATA.items():
            stratum = side.index[side == sign]
            means = [one.reindex(stratum).dropna().groupby(level="prompt").mean() for one in scored]
            shared = sorted(set.intersection(*(set(mean.index) for mean in means))) if means else []
            row[f"{name}_pairs"] = len(shared)
            if len(shared) > 1:
                put(row, name, share_interval(crossed_mean([np.stack([mean[shared].to_numpy() for mean in means])])))
        if any(row.get(name) is not None for name in STRATA):
            rows.append(row)
    columns = [Column("Variant", "variant"), Column("β", "beta")]
    for name in STRATA:
        if not any(row.get(name) is not None for row in rows):
            continue
        header = "Equal length" if name == "equal" else f"Chosen is {name}"
        columns += [Column(header, name, 3, interval=True), Column("of prompts", f"{name}_pairs", 0)]
    columns, size = counted(rows, [*columns, Column("Seeds", "seeds", 0)], {"seeds": "seeds"})
    note = size + (
        "Accuracy by margin on held-out test pairs. A policy that merely learnt to prefer long answers is right where the chosen answer is "
        "the longer one and wrong where it is the shorter one."
    )
    return Table("pair_lengths", "Accuracy by difference in length", pd.DataFrame(rows, dtype=object), columns, note)


def per_pair(f: Findings, metric: str, run: str) -> pd.Series:
    """Values of a metric on the pairs of test prompts, by prompt and draw."""
    scores = f.results.scores
    rows = scores[(scores["metric"] == metric) & (scores["run"] == run)]
    rows = rows[rows["prompt"].map(f.results.splits).eq(TEST)]
    return rows.set_index(["prompt", "draw"])["value"].astype(float)


def quadrants(f: Findings) -> Figure | None:
    """Share of pairs in each quadrant, a bar for each selected cell."""
    shown = []
    for variant, c in f.chosen.items():
        if variant not in f.foremost:
            continue
        places = shares_of(f, c)
        if places is not None:
            shares = [float(places[name].mean()) for name in QUADRANTS]
            shown.append((f"{plain(variant)}, β {plain(f.label(c))}", shares))
    if not shown:
        return None
    figure, (axis, *_) = canvas(1, 1, 8.2, 0.9 + 0.34 * len(shown))
    for place, (_, shares) in enumerate(reversed(shown)):
        left = 0.0
        for name, share, shade in zip(QUADRANTS, shares, SHADES, strict=True):
            axis.barh(place, share, left=left, color=shade, height=0.68, label=name if place == 0 else "_nolegend_")
            if share >= 0.06:
                axis.text(
                    left + share / 2, place, f"{100 * share:.0f}", ha="center", va="center", fontsize=8, color="#1b1f23"
                )
            left += share
    axis.set_yticks(range(len(shown)), [name for name, _ in reversed(shown)])
    axis.set_xlim(0, 1)
    axis.grid(visible=False)
    axis.set_xlabel("share of held-out test pairs (numbers in %)")
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=4, handlelength=1.2, columnspacing=1.4)
    return figure
