"""Controls: a comparison that must show no difference, and one that must show a difference."""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from dpobench.analysis.findings import TEST, Findings, put
from dpobench.analysis.results import REFERENCE
from dpobench.report.figures import GREY, INK, canvas, entry, legend, log_axis, look, plain
from dpobench.report.metrics import BEST_OF_REWARD, BEST_OF_WIN_RATE, REWARD, SAME_WIN_RATE
from dpobench.report.section import Section
from dpobench.report.table import Column, Row, Table, interval
from dpobench.stats.crossed import Estimate, crossed_mean, share_difference

# A negative control that fails this clearly raises an alarm at the head of the report; by chance once in a thousand.
ALARM = 0.001


@dataclass(frozen=True)
class BestOf:
    """The best of k answers of the reference: a policy that needs no training.

    Args:
        k: answers to choose from.
        win_rate: against the answer of the reference that is sampled for all comparisons, on the test prompts.
        reward: the judge's score of the best; None where there is none.
    """

    k: int
    win_rate: Estimate
    reward: Estimate | None

    @property
    def label(self) -> str:
        """Its name in tables."""
        return f"best of {self.k} of the reference"

    @property
    def kl_bound(self) -> float:
        """Largest KL to the reference, nats per sequence: log k - (k-1)/k (Beirami et al. 2024, arXiv:2401.01879)."""
        return math.log(self.k) - (self.k - 1) / self.k

    @property
    def ceiling(self) -> float:
        """Win-rate where no two answers tie; ties make it less."""
        return self.k / (self.k + 1)


def best_of_rows(f: Findings) -> list[BestOf]:
    """Every k above one that was scored, in ascending order; empty where there was no pool or no judge that scores."""
    rows = []
    for k in sorted(int(group) for group in f.results.groups(BEST_OF_WIN_RATE) if group.isdigit()):
        win = f.estimate([REFERENCE], BEST_OF_WIN_RATE, TEST, str(k))
        if k > 1 and win is not None:
            rows.append(BestOf(k, win, f.estimate([REFERENCE], BEST_OF_REWARD, TEST, str(k))))
    return rows


def section(f: Findings) -> Section | None:
    """The section, where the reference answered more than once."""
    same, best = f.estimate([REFERENCE], SAME_WIN_RATE, TEST), best_of_rows(f)
    if same is None and not best:
        return None
    rows = [_same(same)] if same is not None else []
    rows += [_best(f, one) for one in best]
    rows += _variants(f, best)
    columns = [
        Column("Compared with the reference's answers", "compared"),
        Column("β", "beta"),
        Column("Win-rate", "win_rate", 2, interval=True),
        Column("True value", "expected"),
        Column("Reward", "reward", 2, interval=True),
        Column("KL, nats per sequence", "kl", 2, interval=True),
        Column("KL at most", "kl_bound", 2),
        Column(f"Less the best of {best[-1].k}", "difference", 3, interval=True, signed=True) if best else None,
        Column("Reading", "reading"),
        Column("Prompts", "n_prompts", 0),
        Column("Seeds", "seeds", 0),
    ]
    table = Table(
        "controls",
        "Negative and positive control, with the variants at their selected β",
        pd.DataFrame(rows, dtype=object),
        [column for column in columns if column],
        "The best of k is taken over all subsets of a pool of further answers of the reference, by the score of the same judge; "
        "where no two answers tie it wins k / (k + 1), whatever the judge. Its KL is not measured: the bound log k - (k-1)/k holds "
        "for any judge. It needs k answers a prompt, where a trained policy needs one.",
    )
    figure = _curve(f, best) if best else None
    caption = (
        "Win-rate against KL to the reference, test prompts: the best of k answers of the reference (at the bound of its KL, so it "
        "may lie further left), and every variant at its selected β. Bars are 95 % intervals; the dotted line is k / (k + 1), "
        "which the best of k reaches where no two answers tie."
    )
    alarms = []
    if same is not None and same.p_of(0.5) < ALARM:
        alarms.append(
            f"The negative control fails: the reference wins {interval(same.value, same.low, same.high, 3)} against a second draw of "
            "itself, where the true value is 0.5. The judge, the sampling or the split is wrong, and no win-rate here can be trusted."
        )
    figures = {"best_of": (caption, figure)} if figure is not None else {}
    title = "Controls: a difference that must be shown, and one that must not"
    return Section("controls", title, [table], _sentences(same, best), figures, _untrained(f, best), alarms)


def _untrained(f: Findings, best: list[BestOf]) -> list[str]:
    """Controls and baselines that do better than every candidate."""
    sentences = []
    less = [_difference(f, f.chosen[v].ids, best[-1]) for v in f.candidates if v in f.chosen] if best else []
    if less and all(one is not None and one.high < 0 for one in less):
        top = best[-1]
        wins = interval(top.win_rate.value, top.win_rate.low, top.win_rate.high)
        sentences.append(
            f"No trained variant reaches the best of {top.k} answers of the reference, {wins} at {top.kl_bound:.2f} nats at most; that "
            f"costs {top.k} answers and a judge for every prompt."
        )
    for name in f.baselines:
        cell = f.chosen.get(name)
        gaps = [f.difference(cell.ids, f.chosen[v].ids) for v in f.candidates if v in f.chosen] if cell else []
        if gaps and all(gap is not None and gap.low > 0 for gap in gaps):
            sentences.append(
                f"The baseline {name} does better than every variant, each interval of the difference clear of zero."
            )
    return sentences


def _sentences(same: Estimate | None, best: list[BestOf]) -> list[str]:
    sentences = []
    if same is not None:
        covers = (
            "which covers 0.5, as it must"
            if _covers(same)
            else "which does not cover 0.5: once in twenty times by chance"
        )
        shown = interval(same.value, same.low, same.high, 3)
        sentences.append(f"Against a second draw of itself the reference has a win-rate of {shown}, {covers}.")
    if best:
        top = best[-1]
        shown = interval(top.win_rate.value, top.win_rate.low, top.win_rate.high, 3)
        reading = (
            "the judge detects it"
            if top.win_rate.low > 0.5
            else "the judge does not detect it: its win-rates of variants mean little"
        )
        sentences.append(
            f"The {top.label} wins {shown}, at a KL of at most {top.kl_bound:.2f} nats a sequence: {reading}."
        )
    return sentences


def _covers(same: Estimate) -> bool:
    return same.low <= 0.5 <= same.high


def _same(same: Estimate) -> Row:
    row: Row = {"compared": "A/A: a second draw of the reference", "expected": "0.5"}
    put(row, "win_rate", same)
    row["reading"] = "covers 0.5" if _covers(same) else "does not cover 0.5"
    return row | {"kl_bound": 0.0, "n_prompts": same.n_prompts}


def _best(f: Findings, one: BestOf) -> Row:
    row: Row = {"compared": one.label, "expected": f"0.5 to {one.ceiling:.3g}"}
    put(row, "win_rate", one.win_rate)
    put(row, "reward", one.reward)
    row["reading"] = "wins" if one.win_rate.low > 0.5 else "is not shown to win"
    return row | {"kl_bound": one.kl_bound, "n_prompts": one.win_rate.n_prompts}


def _variants(f: Findings, best: list[BestOf]) -> list[Row]:
    rows = []
    for variant, c in f.chosen.items():
        win = f.estimate(c.ids, f.headline)
        if win is None:
            continue
        row: Row = {"compared": variant, "beta": c.beta}
        put(row, "win_rate", win)
        put(row, "reward", f.estimate(c.ids, REWARD))
        put(row, "kl", f.estimate(c.ids, f.distance))
        difference = _difference(f, c.ids, best[-1]) if best else None
        put(row, "difference", difference)
        if difference is not None:
            row["reading"] = (
                "better" if difference.low > 0 else "worse" if difference.high < 0 else "no difference shown"
            )
        rows.append(row | {"n_prompts": win.n_prompts, "seeds": win.seeds})
    return rows


def _difference(f: Findings, runs: list[str], one: BestOf) -> Estimate | None:
    """Win-rate of some runs less that of the best of k, on the test prompts both have."""
    wins = f.results.table(f.headline or "", runs, None, TEST)
    base = f.results.table(BEST_OF_WIN_RATE, [REFERENCE], str(one.k), TEST)
    shared = [prompt for prompt in wins.columns if prompt in set(base.columns)]
    if len(shared) < 2:
        return None
    # The best of k has no seeds: nothing of it is trained.
    less = wins[shared].to_numpy(dtype=float) - base.loc[REFERENCE, shared].to_numpy(dtype=float)
    return share_difference(crossed_mean([less]))


def _curve(f: Findings, best: list[BestOf]) -> Figure:
    figure, (axis, *_) = canvas(1, 1, 8.2, 4.2)
    far = [one.kl_bound for one in best]
    axis.plot(far, [one.win_rate.value for one in best], "o-", color=INK, lw=1.4, ms=4.5, label="best of k", zorder=3)
    for one, at in zip(best, far, strict=True):
        axis.plot([at, at], [one.win_rate.low, one.win_rate.high], color=INK, lw=1.1, alpha=0.5)
        axis.annotate(
            f"k = {one.k}", (at, one.win_rate.value), (6, -12), textcoords="offset points", fontsize=8, color=INK
        )
    shown = [0.8 * min(far), max(far)]
    for variant, c in f.chosen.items():
        x, y = f.estimate(c.ids, f.distance), f.estimate(c.ids, f.headline)
        if x is None or y is None or x.value <= 0:
            continue
        style, low = look(f, variant), max(x.low, 0.02 * x.value)
        axis.plot([low, x.high], [y.value, y.value], color=style["color"], lw=1.1, alpha=0.45)
        axis.plot([x.value, x.value], [y.low, y.high], color=style["color"], lw=1.1, alpha=0.45)
        axis.plot(x.value, y.value, ls="", ms=6.5, label=entry(f, variant), **style)
        shown += [low, x.high]
    sizes = np.geomspace(1.5, max(64.0, math.exp(min(max(shown), 12.0) + 1)), 200)
    bounds = np.log(sizes) - (sizes - 1) / sizes
    inside = (bounds >= 0.5 * min(shown)) & (bounds <= 1.1 * max(shown))
    axis.plot(bounds[inside], (sizes / (sizes + 1))[inside], ls=":", color=GREY, lw=1.2, label="k / (k + 1)", zorder=1)
    axis.axhline(0.5, color=GREY, lw=1.2, label=REFERENCE, zorder=1)
    axis.set_xscale("log")
    log_axis(axis.xaxis, [min(shown), 1.05 * max(shown)])
    axis.set_xlabel("KL to the reference (nats per sequence; of the best of k, its bound)")
    axis.set_ylabel(plain(f.results.label(f.headline or "win_rate")))
    legend(figure, axis)
    return figure
