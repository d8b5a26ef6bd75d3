"""The judge card: how the judge decides where the answer is known, in both orders, and where an answer instructs it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from dpobench.analysis.findings import TEST, Findings, put
from dpobench.analysis.results import REFERENCE
from dpobench.artifacts.records import Cell
from dpobench.report.metrics import (
    FIRST_SHOWN,
    INCONSISTENT,
    JUDGE_ATTACK,
    JUDGE_FIRST_SHOWN,
    JUDGE_INCONSISTENT,
    JUDGE_LENGTH_DIFFERENCE,
    JUDGE_MISSING,
    JUDGE_PLAIN,
    JUDGE_SAYS,
    JUDGE_SCORE,
    JUDGE_UNPARSABLE,
    LABEL_SAYS,
    LENGTH_SAYS,
    MISSING,
    TIE,
    WIN_RATE,
    WIN_RATE_BEST,
    WIN_RATE_WORST,
)
from dpobench.report.section import Section
from dpobench.report.table import Column, Row, Table, interval
from dpobench.stats.crossed import Estimate, crossed_mean, share_interval
from dpobench.stats.reliability import agreement, correlation, kappa

# A judge outside these limits is not to be trusted.
FIRST_SHOWN_WINS, MANY_INCONSISTENT = (0.4, 0.6), 0.35
# Level at which a failed control raises an alarm: one report in a hundred raises a false one.
ALARM = 0.01
KNOWN = {"control": "two answers of the reference", "labels": "held-out pairs", "human": "pairs judged by people"}
ATTACKS = {"alone": "Answers that say nothing or instruct the judge", "appended": "Rejected answer with an instruction"}
# Shares that raise an alarm: wins of such answers against the chosen one, and missing verdicts.
FOOLED, MANY_MISSING = 0.05, 0.02
_ON_CARD = (
    JUDGE_SCORE, JUDGE_SAYS, LABEL_SAYS, LENGTH_SAYS, JUDGE_LENGTH_DIFFERENCE, JUDGE_FIRST_SHOWN,
    JUDGE_INCONSISTENT, JUDGE_UNPARSABLE, JUDGE_MISSING, JUDGE_ATTACK, JUDGE_PLAIN,
)  # fmt: skip
_NOTE = (
    "Intervals are 95 %, clustered by prompt. Agreement is exact, a tie against a decided label does not agree; κ is Cohen's, agreement "
    "beyond what the two rates of verdicts give by chance. Length alone always takes the longer answer. An agreement with labels is "
    "no better than the labels. The line A/A is of some prompts; where the controls have it, theirs is of all. "
    "Answers that say nothing or instruct the judge are compared with the chosen answer; so is the rejected "
    "answer, with an instruction after it and without."
)


def section(f: Findings) -> Section | None:
    """The section, where the judge was examined or gave verdicts with bounds."""
    card = _card(f)
    rows = [] if card is None else [*_harness(card), *_agreements(card), *_attacks(card)]
    if not rows and not f.results.groups(WIN_RATE_WORST):
        return None
    columns = [
        Column("Check", "check"),
        Column("Judge", "judge", 2, interval=True),
        Column("Length alone", "length", 2, interval=True),
        Column("Should be", "should"),
        Column("Reading", "reading", bold="alarm"),
        Column("Prompts", "n_prompts", 0),
        Column("Comparisons", "comparisons", 0),
    ]
    table = Table(
        "judge_card", "Judge card", pd.DataFrame(rows, dtype=object), columns, _NOTE, hidden=("alarm", "sentence")
    )
    alarms = [str(row["sentence"]) for row in rows if row["alarm"] and row["sentence"]]
    notes = (
        [f"The judge is untrustworthy: {'; '.join(alarms)}. Read every win-rate with that in mind."] if alarms else []
    )
    verdicts = _verdicts(f)
    unsure = _unsure(verdicts)
    sentences = [*_sentences(rows, unsure), *unsure]
    return Section("judge", "Can the judge be trusted?", [table, verdicts], sentences, alarms=[*notes, *unsure])


@dataclass(frozen=True)
class _Card:
    """Rows of the card: one per comparison, a column per metric, and `group`, `prompt`, `draw`."""

    frame: pd.DataFrame

    def of(self, groups: Sequence[str], *columns: str) -> pd.DataFrame:
        """Comparisons of some parts that have all of these columns."""
        there = [name for name in columns if name in self.frame]
        chosen = self.frame[self.frame["group"].isin(groups)]
        return chosen.dropna(subset=there) if len(there) == len(columns) else chosen.head(0)


def _card(f: Findings) -> _Card | None:
    scores = f.results.scores
    rows = scores[(scores["run"] == REFERENCE) & scores["metric"].isin(_ON_CARD)]
    if rows.empty:
        return None
    wide = rows.pivot(index=["group", "prompt", "draw"], columns="metric", values="value")
    return _Card(wide.reset_index())


def _mean(frame: pd.DataFrame, values: npt.ArrayLike, *, share: bool = True) -> Estimate | None:
    """Mean over prompts of the mean of each; the prompt is the unit."""
    means = pd.Series(np.asarray(values, dtype=np.float64)).groupby(frame["prompt"].to_numpy()).mean()
    if len(means) < 2:
        return None
    estimate = crossed_mean([means.to_numpy()[None]])
    return share_interval(estimate) if share else estimate


def _row(check: str, estimate: Estimate | None, frame: pd.DataFrame, should: str, **more: Cell) -> Row:
    row: Row = {"check": check, "should": should, "reading": "", "alarm": False, "sentence": "", "length": None}
    put(row, "judge", estimate)
    row |= {"n_prompts": frame["prompt"].nunique(), "comparisons": len(frame)} | more
    return row


def _harness(card: _Card) -> list[Row]:
    """What must hold whatever the answers are."""
    rows = []
    both = card.of(["control"], JUDGE_SCORE)
    if len(both) and (estimate := _mean(both, both[JUDGE_SCORE])):
        apart = _mean(both, both[JUDGE_SCORE] - 0.5, share=False)
        off = apart is not None and apart.p < ALARM
        alarm = (
            f"two answers of one model do not tie on average ({interval(estimate.value, estimate.low, estimate.high)})"
        )
        rows.append(_row("A/A: two answers of the reference", estimate, both, "0.5",
                         reading="off" if off else "holds", alarm=off, sentence=alarm))  # fmt: skip
    shown = card.of([*KNOWN], JUDGE_FIRST_SHOWN, JUDGE_INCONSISTENT)
    if len(shown) and (estimate := _mean(shown, shown[JUDGE_FIRST_SHOWN])):
        off = not FIRST_SHOWN_WINS[0] <= round(estimate.value, 9) <= FIRST_SHOWN_WINS[1]
        alarm = f"the answer shown first wins {estimate.value:.0%} of its verdicts"
        rows.append(_row("Wins of the answer shown first", estimate, shown, "0.4 to 0.6",
                         reading="untrustworthy" if off else "within", alarm=off, sentence=alarm))  # fmt: skip
    if len(shown) and (estimate := _mean(shown, shown[JUDGE_INCONSISTENT])):
        off = round(estimate.value, 9) > MANY_INCONSISTENT
        alarm = f"{estimate.value:.0%} of its verdicts turn with the order"
        rows.append(_row("Verdicts that turn with the order", estimate, shown, "at most 0.35",
                         reading="untrustworthy" if off else "within", alarm=off, sentence=alarm))  # fmt: skip
    for metric, check in (
        (JUDGE_UNPARSABLE, "Verdicts that cannot be read"),
        (JUDGE_MISSING, "Comparisons without a verdict"),
    ):
        comparisons = card.of([*KNOWN, *ATTACKS], metric)
        if len(comparisons):
            rows.append(_row(check, _mean(comparisons, comparisons[metric]), comparisons, "0"))
    return rows


def _agreements(card: _Card) -> list[Row]:
    """Agreement with what is known, of the judge and of length alone."""
    rows = []
    for group in ("labels", "human"):
        known = card.of([group], JUDGE_SAYS, LABEL_SAYS, LENGTH_SAYS)
        if known["prompt"].nunique() < 2:
            continue
        says, label, longer = (known[name].to_numpy(dtype=float) for name in (JUDGE_SAYS, LABEL_SAYS, LENGTH_SAYS))
        row = _row(f"Agreement on {KNOWN[group]}", agreement(says, label, known["prompt"]), known, "above length alone")
        put(row, "length", agreement(longer, label, known["prompt"]))
        gain = _mean(known, (says == label) * 1.0 - (longer == label), share=False)
        if gain is not None:
            better = (
                "better than length alone"
                if gain.low > 0
                else "worse than length alone"
                if gain.high < 0
                else "no better shown"
            )
            row["reading"] = f"{better} ({interval(gain.value, gain.low, gain.high, 2, signed=True)})"
        rows.append(row)
        row = _row(f"κ on {KNOWN[group]}", kappa(says, label, known["prompt"]), known, "above length alone")
        put(row, "length", kappa(longer, label, known["prompt"]))
        rows.append(row)
    compared = card.of([*KNOWN], JUDGE_SCORE, JUDGE_LENGTH_DIFFERENCE)
    if compared["prompt"].nunique() > 1:
        estimate = correlation(compared[JUDGE_SCORE], compared[JUDGE_LENGTH_DIFFERENCE], compared["prompt"])
        rows.append(_row("Correlation with the difference in length", estimate, compared, "that of the labels"))
        label = card.of(["labels"], LABEL_SAYS, JUDGE_LENGTH_DIFFERENCE)
        if label["prompt"].nunique() > 1:
            base = correlation(label[LABEL_SAYS], label[JUDGE_LENGTH_DIFFERENCE], label["prompt"])
            rows[-1]["reading"] = f"the labels': {interval(base.value, base.low, base.high)}"
    return rows


def _attacks(card: _Card) -> list[Row]:
    """Answers that say nothing or instruct the judge, against the chosen answer."""
    rows = []
    alone = card.of(["alone"], JUDGE_ATTACK)
    if len(alone) and (estimate := _mean(alone, alone[JUDGE_ATTACK])):
        off = round(estimate.value, 9) > FOOLED
        alarm = f"answers that say nothing or instruct it win {estimate.value:.0%} against the chosen answer"
        rows.append(_row(f"{ATTACKS['alone']}: wins", estimate, alone, f"at most {FOOLED:g}",
                         reading="fooled" if off else "within", alarm=off, sentence=alarm))  # fmt: skip
    tried = card.of(["appended"], JUDGE_ATTACK, JUDGE_PLAIN)
    gain = _mean(tried, tried[JUDGE_ATTACK] - tried[JUDGE_PLAIN], share=False) if len(tried) else None
    if gain is not None:
        obeys = gain.value > 0 and gain.p < ALARM
        shown = interval(gain.value, gain.low, gain.high, 2, signed=True)
        plain = _mean(tried, tried[JUDGE_PLAIN])
        what = ATTACKS["appended"]
        row = _row(f"{what}: wins", _mean(tried, tried[JUDGE_ATTACK]), tried,
                   f"{plain.value:.2f}, as without it" if plain else "",
                   reading=f"obeys ({shown})" if obeys else f"no gain shown ({shown})", alarm=obeys,
                   sentence=f"it obeys instructions in answers ({what.lower()}: {shown} wins)")  # fmt: skip
        rows.append(row)
    return rows


def _verdicts(f: Findings) -> Table:
    """Missing verdicts with bounds, ties and consistency of each selected cell, by opponent."""
    metrics = {"worst": WIN_RATE_WORST, "best": WIN_RATE_BEST, "missing": MISSING, "first_shown": FIRST_SHOWN}
    metrics |= {"ties": TIE, "inconsistent": INCONSISTENT}
    rows = []
    for variant, c in f.chosen.items():
        for group in f.results.groups(WIN_RATE_WORST):
            rate = f.estimate(c.ids, WIN_RATE, TEST, group)
            if rate is None:
                continue
            row: Row = {"variant": variant, "beta": c.beta, "opponent": group}
            put(row, "win_rate", rate)
            for name, metric in metrics.items():
                put(row, name, f.estimate(c.ids, metric, TEST, group))
            missing = f.estimate(c.ids, MISSING, TEST, group)
            alarm = missing is not None and missing.value > MANY_MISSING
            rows.append(row | {"n_prompts": rate.n_prompts, "seeds": rate.seeds, "alarm": alarm})
    columns = [
        Column("Variant", "variant"),
        Column("β", "beta"),
        Column("Against", "opponent"),
        Column("Win-rate", "win_rate", 3, interval=True),
        Column("Missing lost", "worst", 3, interval=True),
        Column("Missing won", "best", 3, interval=True),
        Column("Missing", "missing", 2, interval=True, bold="alarm"),
        Column("Ties", "ties", 2, interval=True),
        Column("First shown wins", "first_shown", 2, interval=True),
        Column("Turn with the order", "inconsistent", 2, interval=True),
        Column("Prompts", "n_prompts", 0),
        Column("Seeds", "seeds", 0),
    ]
    note = (
        "On test prompts, selected cells. A missing verdict counts in no win-rate; the two bounds count all of them as lost and as "
        "won, the true win-rate lies in between; bold where more than 2 % are missing. A tie is half a win; ties are the "
        "comparisons that the judge tied in both orders, or whose answers are identical."
    )
    frame = pd.DataFrame(rows, dtype=object)
    hidden = ("alarm",)
    return Table(
        "judge_verdicts",
        "Verdicts on the variants: missing, tied, dependent on the order",
        frame,
        columns,
        note,
        hidden=hidden,
    )


def _unsure(verdicts: Table) -> list[str]:
    """A sentence where the missing verdicts could decide."""
    rows = verdicts.frame.to_dict("records")
    shown = [row for row in rows if row["alarm"]]
    if not shown:
        return []
    most = max(shown, key=lambda row: row["missing"])
    return [
        f"The judge gave no verdict on up to {most['missing']:.1%} of the comparisons of a variant ({most['variant']} against "
        f"{most['opponent']}: its win-rate of {most['win_rate']:.3f} lies between {most['worst']:.3f} and {most['best']:.3f} "
        "whatever they were). Which verdicts are missing is seldom chance: read the bounds."
    ]


def _sentences(rows: Sequence[Row], unsure: Sequence[str]) -> list[str]:
    alarms = [str(row["sentence"]) for row in rows if row["alarm"]]
    if alarms:
        return [f"No: {'; '.join(alarms)}."]
    if unsure or not rows:
        return []
    return [
        "No check here speaks against the judge. That does not show that it is right: see its agreement with what is known."
    ]
