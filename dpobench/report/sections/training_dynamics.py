"""Known troubles of preference optimisation, a table each: over-optimisation, displacement, length, calibration, saturation."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from scipy import special

from dpobench.analysis.findings import TEST, Configuration, Findings, put
from dpobench.analysis.results import REFERENCE, Array
from dpobench.artifacts.records import Cell
from dpobench.report.metrics import CHOSEN_LENGTH, CHOSEN_SHIFT, MARGIN, REJECTED_SHIFT, SATURATED
from dpobench.report.sections.data import data_counts
from dpobench.report.table import Column, Row, Table, is_missing
from dpobench.stats.crossed import Estimate, crossed_mean, crossed_ratio, share_difference, share_interval
from dpobench.stats.reliability import Calibration, calibration, calibration_error, crossed_correlation

SHIFTS = (CHOSEN_SHIFT, REJECTED_SHIFT)
QUADRANTS = ("chosen up, rejected down", "both up", "both down", "chosen down, rejected up")


def diagnostics(f: Findings) -> list[Table]:
    """The tables that have anything to show."""
    made = [over_optimisation(f), displacement(f), lengths(f), calibrations(f), dynamics(f), data_counts(f)]
    return [table for table in made if len(table.frame)]


def counted(rows: Sequence[Row], columns: Sequence[Column], units: Mapping[str, str]) -> tuple[list[Column], str]:
    """The columns without those that hold one number in every row, and a sentence that states these numbers once.

    Args:
        rows: of the table.
        columns: of the table.
        units: what the columns count, by key: "pairs" -> "held-out test pairs".
    """
    counts = []
    for key, what in units.items():
        values = {row[key] for row in rows if not is_missing(row.get(key))}
        if len(values) == 1:
            number = values.pop()
            one = re.sub(r"(prompt|run|seed)s", r"\1", what, count=1)
            counts.append(f"{number:,} {one if number == 1 else what}")
            columns = [column for column in columns if column.key != key]
    return list(columns), f"{', '.join(counts)}. " if counts else ""


def over_optimisation(f: Findings) -> Table:
    """Every cell against the selected one of its variant: does the training margin rise while the ranking metric falls?"""
    rows = []
    for c in f.configurations:
        best = f.chosen.get(c.variant)
        if best is None or not c.done or f.ranking is None:
            continue
        far, base = f.estimate(c.ids, f.distance), f.estimate(best.ids, f.distance)
        row: Row = {"variant": c.variant, "beta": c.beta, "seeds": len(c.done)}
        put(row, "distance", far)
        put(row, "ranking", f.estimate(c.ids, f.ranking))
        put(row, "heldout_margin", f.estimate(c.ids, MARGIN))
        row["training_margin"] = last(c, MARGIN)
        difference = f.difference(c.ids, best.ids) if c.key != best.key else None
        put(row, "to_selected", difference)
        measured = difference or f.estimate(c.ids, f.ranking)
        row["n_prompts"] = measured.n_prompts if measured else 0
        farther = far is not None and base is not None and far.value > base.value
        lower = difference is not None and (difference.high < 0 if f.direction != "lower" else difference.low > 0)
        row["selected"] = c.key == best.key
        row["reading"] = "selected" if row["selected"] else "over-optimised" if farther and lower else ""
        rows.append(row)
    columns = [
        Column("Variant", "variant"),
        Column("β", "beta"),
        Column(f.results.heading(f.distance or "distance"), "distance", 2, interval=True),
        Column("Training margin, nats", "training_margin", 2),
        Column("Held-out margin, nats", "heldout_margin", 2, interval=True),
        Column(f.results.heading(f.ranking or ""), "ranking", 2, interval=True),
        Column("Less the selected cell", "to_selected", 3, interval=True, signed=True),
        Column("Reading", "reading"),
        Column("Prompts", "n_prompts", 0),
        Column("Seeds", "seeds", 0),
    ]
    columns, size = counted(rows, columns, {"n_prompts": "test prompts", "seeds": "seeds"})
    note = size + (
        "A cell is called over-optimised where it went farther from the reference than the selected cell of its variant and its "
        "interval of the difference lies wholly on the worse side. The intervals are not adjusted for the number of cells."
    )
    frame = pd.DataFrame(rows, dtype=object)
    return Table(
        "over_optimisation",
        "Regularisation against distance, and over-optimisation",
        frame,
        columns,
        note,
        marked="selected" if rows else "",
    )


def displacement(f: Findings) -> Table:
    """How the likelihood of both answers moved on held-out pairs, and in which quadrant each pair ended."""
    rows = []
    for c in f.configurations:
        places = quadrants(f, c)
        if places is None:
            continue
        row: Row = {"variant": c.variant, "beta": c.beta}
        for name in SHIFTS:
            put(row, name, f.estimate(c.ids, name))
        for name, place in places.items():
            put(row, name, share_interval(crossed_mean([place])))
        rows.append(
            row
            | {"pairs": places[QUADRANTS[0]].shape[1], "seeds": len(c.done), "selected": f.chosen.get(c.variant) == c}
        )
    columns = [
        Column("Variant", "variant"),
        Column("β", "beta"),
        Column("Chosen, nats", SHIFTS[0], 2, interval=True, signed=True),
        Column("Rejected, nats", SHIFTS[1], 2, interval=True, signed=True),
        *(Column(name.capitalize(), name, 2, interval=True) for name in QUADRANTS),
        Column("Pairs", "pairs", 0),
        Column("Seeds", "seeds", 0),
    ]
    columns, size = counted(rows, columns, {"pairs": "held-out test prompts with pairs", "seeds": "seeds"})
    note = (
        size
        + "Change of the log-probability from the reference, on held-out test pairs. A falling likelihood of the chosen answer is "
        "common; where both fall, probability goes to texts that nobody labelled."
    )
    title = "Likelihood displacement: where the probability went"
    return Table(
        "displacement", title, pd.DataFrame(rows, dtype=object), columns, note, marked="selected" if rows else ""
    )


def quadrants(f: Findings, c: Configuration) -> dict[str, Array] | None:
    """Share of each test prompt's pairs that ended in each quadrant, shape [S, N] each; None with fewer than two prompts."""
    chosen, rejected = (f.results.pairs(name, c.ids, TEST) if c.done else pd.DataFrame() for name in SHIFTS)
    shared = chosen.columns.intersection(rejected.columns)
    if not len(shared) or shared.get_level_values("prompt").nunique() < 2:
        return None
    up, down = chosen[shared] > 0, rejected[shared] <= 0
    places = dict(zip(QUADRANTS, (up & down, up & ~down, ~up & down, ~up & ~down), strict=True))
    return {name: each.T.groupby(level="prompt").mean().T.to_numpy(dtype=float) for name, each in places.items()}


def lengths(f: Findings) -> Table:
    """How long the answers are, and whether length and score go together."""
    rows = []
    shown: list[tuple[str, Cell, list[str]]] = [(v, c.beta, c.ids) for v, c in f.chosen.items()]
    for variant, beta, runs in [*shown, (REFERENCE, None, [REFERENCE])]:
        row: Row = {"variant": variant, "beta": beta}
        measured = f.estimate(runs, f.length)
        if measured is None:
            continue
        put(row, "length", measured)
        _against_data(f, runs, row)
        row |= {"n_prompts": measured.n_prompts, "seeds": measured.seeds if variant != REFERENCE else None}
        if variant != REFERENCE:
            put(row, "length_ratio", f.length_ratio(runs))
            put(row, "correlation", _length_and_score(f, runs))
        rows.append(row)
    columns = [
        Column("Variant", "variant"),
        Column("β", "beta"),
        Column("Tokens", "length", 1, interval=True),
        Column("Ratio to reference", "length_ratio", 2, interval=True),
        Column("Ratio to the data's chosen", "chosen_ratio", 2, interval=True),
        Column("Length–score correlation", "correlation", 2, interval=True, signed=True),
        Column("Prompts", "n_prompts", 0),
        Column("Seeds", "seeds", 0),
    ]
    columns, size = counted(rows, columns, {"n_prompts": "test prompts", "seeds": "seeds"})
    note = size + (
        "Correlation over test prompts between the difference in length to the reference's answer and the headline score, averaged over "
        "seeds."
    )
    return Table("lengths", "Length of the answers", pd.DataFrame(rows, dtype=object), columns, note)


def _against_data(f: Findings, runs: list[str], row: Row) -> None:
    """Length over that of the data's chosen answers to the same prompts, where held-out pairs are to sampled prompts."""
    data = f.results.table(CHOSEN_LENGTH, [REFERENCE], None, TEST)
    lengths = f.results.table(f.length or "", runs, None, TEST)
    shared = [prompt for prompt in lengths.columns if prompt in data.columns]
    if len(shared) > 1 and data[shared].to_numpy().mean() > 0:
        base = data.loc[REFERENCE, shared].to_numpy(dtype=float)
        ratio = crossed_ratio(lengths[shared].to_numpy(dtype=float), base)
        put(row, "chosen_ratio", replace(ratio, low=max(ratio.low, 0.0)))


def _length_and_score(f: Findings, runs: list[str]) -> Estimate | None:
    """Correlation of the difference in length to the reference's answer with the headline score."""
    if f.headline is None or f.length is None:
        return None
    length = f.results.table(f.length, [*runs, REFERENCE], None, TEST)
    score = f.results.table(f.headline, runs, None, TEST)
    shared = [prompt for prompt in score.columns if prompt in length.columns]
    if len(shared) < 8:
        return None
    base = length.loc[REFERENCE, shared].to_numpy(dtype=float)
    return crossed_correlation(
        length.loc[runs, shared].to_numpy(dtype=float) - base, score[shared].to_numpy(dtype=float)
    )


def stated(f: Findings, c: Configuration) -> Array | None:
    """Sigma(beta x margin) of held-out test pairs, shape [S, N]; only where the loss states that probability.

    The mean margin of several pairs is the margin of none, and pairs of one prompt are not independent: the first of each counts.
    """
    states = c.variant in f.results.plan.states_probability
    margins = (
        f.results.pairs(MARGIN, c.ids, TEST) if c.done and states and isinstance(c.beta, float) else pd.DataFrame()
    )
    first = ~margins.columns.get_level_values(0).duplicated()
    return special.expit(c.beta * margins.loc[:, first].to_numpy(dtype=float)) if first.sum() > 1 else None


def reliability(f: Findings, c: Configuration) -> Calibration | None:
    """Calibration of the stated probabilities, seeds pooled."""
    probabilities = stated(f, c)
    return None if probabilities is None else calibration(probabilities.ravel())


def calibrations(f: Findings) -> Table:
    """Whether sigma(beta x margin) is a probability one may believe."""
    rows = []
    for c in f.configurations:
        p = stated(f, c)
        if p is None:
            continue
        row: Row = {"variant": c.variant, "beta": c.beta}
        error = calibration_error(p)
        row |= {"ece": error.value, "ece_low": error.low, "ece_high": error.high}
        row |= {"ece_plain": error.plain, "ece_chance": error.chance}
        confidence, right = np.maximum(p, 1 - p), np.where(p == 0.5, 0.5, p > 0.5)
        brier = crossed_mean([(1 - p) ** 2])
        put(row, "brier", replace(brier, low=max(brier.low, 0.0), high=min(brier.high, 1.0)))
        put(row, "accuracy", share_interval(crossed_mean([right])))
        put(row, "overconfidence", share_difference(crossed_mean([confidence - right])))
        row |= {"confidence": float(confidence.mean()), "selected": f.chosen.get(c.variant) == c}
        rows.append(row | {"pairs": p.shape[1], "seeds": len(c.done)})
    columns = [
        Column("Variant", "variant"),
        Column("β", "beta"),
        Column("Mean confidence", "confidence", 3),
        Column("Confidence less accuracy", "overconfidence", 3, interval=True, signed=True),
        Column("Calibration error (ECE)", "ece", 3, interval=True),
        Column("as usually computed", "ece_plain", 3),
        Column("by chance up to", "ece_chance", 3),
        Column("Brier", "brier", 3, interval=True),
        Column("Pairs", "pairs", 0),
        Column("Seeds", "seeds", 0),
    ]
    columns, size = counted(rows, columns, {"pairs": "held-out test prompts with pairs", "seeds": "seeds"})
    note = size + (
        "Stated probability σ(β × margin) that the chosen answer is the better one, for variants whose β is per nat of the summed "
        "log-ratio; of several pairs of one prompt the first. Chance in ten bins makes the usual ECE too large; here it is taken out, and "
        "the interval reaches 0 where the usual one is no larger than calibrated probabilities would give ('by chance up to': 95 of 100 "
        "times). That interval is over prompts, for these checkpoints. Brier 0.25 is a coin; confidence above accuracy is overconfidence."
    )
    title, marked = "Calibration of the implicit preference", "selected" if rows else ""
    return Table("calibration", title, pd.DataFrame(rows, dtype=object), columns, note, marked=marked)


def dynamics(f: Findings) -> Table:
    """The end of training, per cell."""
    rows = []
    for c in f.configurations:
        logs = [run.log for run in c.runs if len(run.log)]
        if not logs:
            continue
        row: Row = {"variant": c.variant, "beta": c.beta, "learning_rate": c.learning_rate}
        row["runs"] = len(logs)
        row["steps"] = max(int(log["step"].max()) + 1 for log in logs) if "step" in logs[0] else len(logs[0])
        for name in ("loss", MARGIN, "accuracy", "chosen_logratio", "rejected_logratio", "saturation"):
            row[name] = last(c, name)
        saturated = f.estimate(c.ids, SATURATED)
        put(row, "heldout_saturation", saturated)
        put(row, "heldout_accuracy", f.estimate(c.ids, f.preference))
        row["pairs"] = saturated.n_prompts if saturated else None
        rows.append(row | {"selected": f.chosen.get(c.variant) == c})
    columns = [
        Column("Variant", "variant"),
        Column("β", "beta"),
        Column("Runs", "runs", 0),
        Column("Loss", "loss", 3),
        Column("Margin, nats", MARGIN, 2),
        Column("Training accuracy", "accuracy", 2),
        Column("Held-out accuracy", "heldout_accuracy", 2, interval=True),
        Column("Chosen log-ratio", "chosen_logratio", 2, signed=True),
        Column("Rejected log-ratio", "rejected_logratio", 2, signed=True),
        Column("Saturated, training", "saturation", 2),
        Column("Saturated, held-out", "heldout_saturation", 2, interval=True),
        Column("Pairs", "pairs", 0),
    ]
    columns, size = counted(rows, columns, {"runs": "runs a cell", "pairs": "held-out test prompts with pairs"})
    note = size + (
        "Training averages over the last tenth of the steps, seeds averaged; they describe the runs and are no estimates with an interval. "
        "Losses of different variants are different quantities. Saturated: pairs on which the gradient of the loss is less than a "
        "hundredth of its size where policy and reference are equal; a loss with a target saturates where it is met. Held-out: "
        "on test prompts, where the loss needs log-probabilities only."
    )
    title = "Training dynamics"
    return Table("dynamics", title, pd.DataFrame(rows, dtype=object), columns, note, marked="selected" if rows else "")


def last(c: Configuration, name: str) -> float | None:
    """Mean of a logged quantity over the last tenth of the steps, seeds averaged."""
    ends = [
        log[name].astype(float).tail(max(1, len(log) // 10)).mean() for log in (r.log for r in c.runs) if name in log
    ]
    return float(np.mean(ends)) if ends else None
