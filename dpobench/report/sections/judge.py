"""The judge card: what the judge says where the answer is known, in both orders, and when it is told what to say."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from dpobench.analysis.findings import TEST, Findings, put
from dpobench.analysis.results import REFERENCE
from dpobench.report.section import Section
from dpobench.report.table import Column, Table, interval
from dpobench.stats.crossed import Estimate, crossed_mean, share_interval
from dpobench.stats.reliability import agreement, correlation, kappa

# A judge outside these is not to be trusted.
FIRST_SHOWN, INCONSISTENT = (0.4, 0.6), 0.35
# Level at which a control that failed is called an alarm: one report in a hundred would raise a false one.
ALARM = 0.01
KNOWN = {"control": "two answers of the reference", "labels": "held-out pairs", "human": "pairs judged by people"}
ATTACKS = {"alone": "Answers that say nothing or instruct the judge", "appended": "Rejected answer with an instruction"}
# What such answers may win against the chosen one, and what share of verdicts may be missing, before it is told at the head.
FOOLED, MISSING = 0.05, 0.02
_WIDE = (
    "judge_score", "judge_says", "label_says", "length_says", "judge_length_difference", "judge_first_shown",
    "judge_inconsistent", "judge_unparsable", "judge_missing", "judge_attack", "judge_plain",
)  # fmt: skip
_NOTE = (
    "Intervals are 95 %, clustered by prompt. Agreement is exact, a tie against a decided label does not agree; κ is Cohen's, agreement "
    "beyond what the two rates of verdicts give by chance. Length alone always takes the longer answer. An agreement with labels is "
    "no better than the labels. The line A/A is of some prompts; where the controls have it, theirs is of all. "
    "Answers that say nothing or instruct the judge are tried against the chosen answer; so is the rejected "
    "answer, with an instruction behind it and without."
)


def section(f: Findings) -> Section | None:
    """The section, where the judge was examined or gave verdicts with bounds."""
    card = _card(f)
    rows = [] if card is None else [*_harness(card), *_agreements(card), *_attacks(card)]
    if not rows and not f.results.groups("win_rate_worst"):
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
        "judge_card", "Judge card", pd.DataFrame(rows, dtype=object), columns, _NOTE, hidden=("alarm", "said")
    )
    alarms = [str(row["said"]) for row in rows if row["alarm"] and row["said"]]
    notes = (
        [f"The judge is untrustworthy: {'; '.join(alarms)}. Read every win-rate with that in mind."] if alarms else []
    )
    verdicts = _verdicts(f)
    unsure = _unsure(verdicts)
    said = [*_said(rows, unsure), *unsure]
    return Section("judge", "Can the judge be trusted?", [table, verdicts], said, alarms=[*notes, *unsure])


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
    own = scores[(scores["run"] == REFERENCE) & scores["metric"].isin(_WIDE)]
    if own.empty:
        return None
    wide = own.pivot(index=["group", "prompt", "draw"], columns="metric", values="value")
    return _Card(wide.reset_index())


def _mean(frame: pd.DataFrame, values: Any, *, share: bool = True) -> Estimate | None:
    """Mean over prompts of the mean of each; the prompt is the unit."""
    means = pd.Series(np.asarray(values, dtype=np.float64)).groupby(frame["prompt"].to_numpy()).mean()
    if len(means) < 2:
        return None
    found = crossed_mean([means.to_numpy()[None]])
    return share_interval(found) if share else found


def _row(check: str, found: Estimate | None, frame: pd.DataFrame, should: str, **more: Any) -> dict[str, Any]:
    row: dict[str, Any] = {"check": check, "should": should, "reading": "", "alarm": False, "said": "", "length": None}
    put(row, "judge", found)
    row |= {"n_prompts": frame["prompt"].nunique(), "comparisons": len(frame)} | more
    return row


def _harness(card: _Card) -> list[dict[str, Any]]:
    """What must hold whatever the answers are."""
    rows = []
    both = card.of(["control"], "judge_score")
    if len(both) and (found := _mean(both, both["judge_score"])):
        apart = _mean(both, both["judge_score"] - 0.5, share=False)
        off = apart is not None and apart.p < ALARM
        said = f"two answers of one model do not tie on average ({interval(found.value, found.low, found.high)})"
        rows.append(_row("A/A: two answers of the reference", found, both, "0.5",
                         reading="off" if off else "holds", alarm=off, said=said))  # fmt: skip
    shown = card.of([*KNOWN], "judge_first_shown", "judge_inconsistent")
    if len(shown) and (found := _mean(shown, shown["judge_first_shown"])):
        off = not FIRST_SHOWN[0] <= round(found.value, 9) <= FIRST_SHOWN[1]
        said = f"the answer shown first wins {found.value:.0%} of its verdicts"
        rows.append(_row("Wins of the answer shown first", found, shown, "0.4 to 0.6",
                         reading="untrustworthy" if off else "within", alarm=off, said=said))  # fmt: skip
    if len(shown) and (found := _mean(shown, shown["judge_inconsistent"])):
        off = round(found.value, 9) > INCONSISTENT
        said = f"{found.value:.0%} of its verdicts turn with the order"
        rows.append(_row("Verdicts that turn with the order", found, shown, "at most 0.35",
                         reading="untrustworthy" if off else "within", alarm=off, said=said))  # fmt: skip
    for metric, check in (
        ("judge_unparsable", "Verdicts that cannot be read"),
        ("judge_missing", "Comparisons without a verdict"),
    ):
        asked = card.of([*KNOWN, *ATTACKS], metric)
        if len(asked):
            rows.append(_row(check, _mean(asked, asked[metric]), asked, "0"))
    return rows


def _agreements(card: _Card) -> list[dict[str, Any]]:
    """Agreement with what is known, length alone beside it."""
    rows = []
    for group in ("labels", "human"):
        known = card.of([group], "judge_says", "label_says", "length_says")
        if known["prompt"].nunique() < 2:
            continue
        says, label, longer = (
            known[name].to_numpy(dtype=float) for name in ("judge_says", "label_says", "length_says")
        )
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
    seen = card.of([*KNOWN], "judge_score", "judge_length_difference")
    if seen["prompt"].nunique() > 1:
        found = correlation(seen["judge_score"], seen["judge_length_difference"], seen["prompt"])
        rows.append(_row("Correlation with the difference in length", found, seen, "that of the labels"))
        label = card.of(["labels"], "label_says", "judge_length_difference")
        if label["prompt"].nunique() > 1:
            base = correlation(label["label_says"], label["judge_length_difference"], label["prompt"])
            rows[-1]["reading"] = f"the labels': {interval(base.value, base.low, base.high)}"
    return rows


def _attacks(card: _Card) -> list[dict[str, Any]]:
    """Answers that say nothing or instruct the judge, against the chosen answer."""
    rows = []
    alone = card.of(["alone"], "judge_attack")
    if len(alone) and (found := _mean(alone, alone["judge_attack"])):
        off = round(found.value, 9) > FOOLED
        said = f"answers that say nothing or instruct it win {found.value:.0%} against the chosen answer"
        rows.append(_row(f"{ATTACKS['alone']}: wins", found, alone, f"at most {FOOLED:g}",
                         reading="fooled" if off else "within", alarm=off, said=said))  # fmt: skip
    tried = card.of(["appended"], "judge_attack", "judge_plain")
    gain = _mean(tried, tried["judge_attack"] - tried["judge_plain"], share=False) if len(tried) else None
    if gain is not None:
        obeys = gain.value > 0 and gain.p < ALARM
        shown = interval(gain.value, gain.low, gain.high, 2, signed=True)
        plain = _mean(tried, tried["judge_plain"])
        what = ATTACKS["appended"]
        row = _row(f"{what}: wins", _mean(tried, tried["judge_attack"]), tried,
                   f"{plain.value:.2f}, as without it" if plain else "",
                   reading=f"obeys ({shown})" if obeys else f"no gain shown ({shown})", alarm=obeys,
                   said=f"it obeys what answers tell it ({what.lower()}: {shown} wins)")  # fmt: skip
        rows.append(row)
    return rows


def _verdicts(f: Findings) -> Table:
    """Missing verdicts with bounds, ties and consistency of each selected cell, by opponent."""
    names = {"worst": "win_rate_worst", "best": "win_rate_best", "missing": "missing", "first_shown": "first_shown"}
    names |= {"ties": "tie", "inconsistent": "inconsistent"}
    rows = []
    for variant, c in f.chosen.items():
        for group in f.results.groups("win_rate_worst"):
            rate = f.estimate(c.ids, "win_rate", TEST, group)
            if rate is None:
                continue
            row: dict[str, Any] = {"variant": variant, "beta": c.beta, "opponent": group}
            put(row, "win_rate", rate)
            for name, metric in names.items():
                put(row, name, f.estimate(c.ids, metric, TEST, group))
            rows.append(
                row | {"n_prompts": rate.n_prompts, "seeds": rate.seeds, "alarm": (row["missing"] or 0) > MISSING}
            )
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
        "won, whatever the judge would have said lies between; bold where more than 2 % are missing. A tie is half a win; ties are the "
        "comparisons that the judge tied in both orders, or whose answers are identical."
    )
    frame = pd.DataFrame(rows, dtype=object)
    hidden = ("alarm",)
    return Table(
        "judge_verdicts", "Verdicts on the variants: missing, tied, turning", frame, columns, note, hidden=hidden
    )


def _unsure(verdicts: Table) -> list[str]:
    """A sentence where the verdicts that stay away could decide."""
    shown = [row for row in verdicts.frame.to_dict("records") if row["alarm"]]
    if not shown:
        return []
    most = max(shown, key=lambda row: row["missing"])
    return [
        f"The judge gave no verdict on up to {most['missing']:.1%} of the comparisons of a variant ({most['variant']} against "
        f"{most['opponent']}: its win-rate of {most['win_rate']:.3f} lies between {most['worst']:.3f} and {most['best']:.3f} "
        "whatever they were). Which verdicts stay away is seldom chance: read the bounds."
    ]


def _said(rows: Sequence[Mapping[str, Any]], unsure: Sequence[str]) -> list[str]:
    alarms = [str(row["said"]) for row in rows if row["alarm"]]
    if alarms:
        return [f"No: {'; '.join(alarms)}."]
    if unsure or not rows:
        return []
    return [
        "Nothing here speaks against the judge. That it is right is not shown by that: see its agreement with what is known."
    ]
