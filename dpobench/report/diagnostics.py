"""What preference optimisation suffers from, as tables: each shows a known trouble, or its absence."""

from typing import Any

import numpy as np
import pandas as pd
from scipy import special

from dpobench.report.findings import TEST, Configuration, Findings, put
from dpobench.report.leaderboard import ENDED
from dpobench.report.results import PREFERENCE, REFERENCE
from dpobench.report.table import Column, Table
from dpobench.stats import Calibration, calibration, crossed_mean, share_interval

# Names that evaluators of held-out pairs give; a table is left out where its metrics are.
SHIFTS = ("chosen_shift", "rejected_shift")
MARGIN = "margin"
QUADRANTS = ("chosen up, rejected down", "both up", "both down", "chosen down, rejected up")


def diagnostics(f: Findings) -> list[Table]:
    """The tables that have anything to show."""
    made = [over_optimisation(f), displacement(f), lengths(f), calibrations(f), dynamics(f), data_counts(f)]
    return [table for table in made if len(table.frame)]


def over_optimisation(f: Findings) -> Table:
    """Every cell against the selected one of its variant: does the training margin rise while the ranking metric falls?"""
    rows = []
    for c in f.configurations:
        best = f.chosen.get(c.variant)
        if best is None or not c.done or f.ranking is None:
            continue
        far, base = f.estimate(c.ids, f.distance), f.estimate(best.ids, f.distance)
        row: dict[str, Any] = {"variant": c.variant, "beta": c.beta, "seeds": len(c.done)}
        put(row, "distance", far)
        put(row, "ranking", f.estimate(c.ids, f.ranking))
        put(row, "heldout_margin", f.estimate(c.ids, MARGIN))
        row["training_margin"] = _last(c, "margin")
        difference = f.difference(c.ids, best.ids) if c.key != best.key else None
        put(row, "to_selected", difference)
        row["n_prompts"] = difference.n_prompts if difference else getattr(f.estimate(c.ids, f.ranking), "n_prompts", 0)
        farther = far is not None and base is not None and far.value > base.value
        lower = difference is not None and (difference.high < 0 if f.direction != "lower" else difference.low > 0)
        row["reading"] = "selected" if c.key == best.key else "over-optimised" if farther and lower else ""
        rows.append(row)
    columns = [
        Column("Variant", "variant"),
        Column("β", "beta"),
        Column(f.results.label(f.distance or "distance"), "distance", 2, interval=True),
        Column("Training margin, nats", "training_margin", 2),
        Column("Held-out margin, nats", "heldout_margin", 2, interval=True),
        Column(f.results.label(f.ranking or ""), "ranking", 2, interval=True),
        Column("Less the selected cell", "to_selected", 3, interval=True, signed=True),
        Column("Reading", "reading"),
        Column("Prompts", "n_prompts", 0),
        Column("Seeds", "seeds", 0),
    ]
    note = (
        "A cell is called over-optimised where it went farther from the reference than the selected cell of its variant and its "
        "interval of the difference lies wholly on the worse side. The intervals are not adjusted for the number of cells."
    )
    frame = pd.DataFrame(rows, dtype=object)
    return Table(
        "over_optimisation",
        "Strength against distance, and over-optimisation",
        frame,
        columns,
        note,
    )


def displacement(f: Findings) -> Table:
    """How the likelihood of both answers moved on held-out pairs, and in which quadrant each pair ended."""
    rows = []
    for c in f.configurations:
        chosen, rejected = (f.results.table(name, c.ids, None, TEST) if c.done else pd.DataFrame() for name in SHIFTS)
        shared = [prompt for prompt in chosen.columns if prompt in set(rejected.columns)]
        if len(shared) < 2:
            continue
        up, down = chosen[shared].to_numpy(dtype=float), rejected[shared].to_numpy(dtype=float)
        row: dict[str, Any] = {"variant": c.variant, "beta": c.beta}
        for name, values in zip(SHIFTS, (up, down), strict=True):
            put(row, name, crossed_mean([values]))
        places = ((up > 0) & (down <= 0), (up > 0) & (down > 0), (up <= 0) & (down <= 0), (up <= 0) & (down > 0))
        for name, place in zip(QUADRANTS, places, strict=True):
            put(row, name, share_interval(crossed_mean([place.astype(np.float64)])))
        rows.append(row | {"pairs": len(shared), "seeds": len(c.done), "selected": f.chosen.get(c.variant) == c})
    columns = [
        Column("Variant", "variant"),
        Column("β", "beta"),
        Column("Chosen, nats", SHIFTS[0], 2, interval=True, signed=True),
        Column("Rejected, nats", SHIFTS[1], 2, interval=True, signed=True),
        *(Column(name.capitalize(), name, 2, interval=True) for name in QUADRANTS),
        Column("Pairs", "pairs", 0),
        Column("Seeds", "seeds", 0),
    ]
    note = "Change of the log-probability from the reference, on held-out test pairs. A falling likelihood of the chosen answer is common; where both fall, probability goes to texts that nobody labelled."  # noqa: E501
    title = "Likelihood displacement: where the probability went"
    return Table(
        "displacement", title, pd.DataFrame(rows, dtype=object), columns, note, marked="selected" if rows else ""
    )


def lengths(f: Findings) -> Table:
    """Whether a variant wins by length."""
    rows = []
    shown: list[tuple[str, Any, list[str]]] = [(v, c.beta, c.ids) for v, c in f.chosen.items()]
    for variant, beta, runs in [*shown, (REFERENCE, None, [REFERENCE])]:
        row: dict[str, Any] = {"variant": variant, "beta": beta}
        measured = f.estimate(runs, f.length)
        if measured is None:
            continue
        put(row, "length", measured)
        put(row, "length_ratio", f.length_ratio(runs) if variant != REFERENCE else None)
        put(row, ENDED, f.estimate(runs, ENDED))
        if variant != REFERENCE:
            row |= _length_and_win(f, runs)
        rows.append(row | {"n_prompts": measured.n_prompts, "seeds": measured.seeds})
    columns = [
        Column("Variant", "variant"),
        Column("β", "beta"),
        Column("Tokens", "length", 1, interval=True),
        Column("Ratio to reference", "length_ratio", 2, interval=True),
        Column("Ended by itself", ENDED, 2, interval=True),
        Column("Length–score correlation", "correlation", 2, interval=True, signed=True),
        Column("Score at equal length", "equal_length", 2, interval=True),
        Column("of prompts", "equal_length_prompts", 0),
        Column("Prompts", "n_prompts", 0),
        Column("Seeds", "seeds", 0),
    ]
    note = (
        "Correlation over test prompts between the difference in length to the reference's answer and the headline score, seeds averaged. "
        "Equal length: answers within 10 % of the reference's, averaged over seeds; these prompts are picked by the answers themselves."
    )
    return Table("lengths", "Length", pd.DataFrame(rows, dtype=object), columns, note)


def _length_and_win(f: Findings, runs: list[str]) -> dict[str, Any]:
    if f.headline is None or f.length is None:
        return {}
    length = f.results.table(f.length, [*runs, REFERENCE], None, TEST)
    win = f.results.table(f.headline, runs, None, TEST)
    shared = [prompt for prompt in win.columns if prompt in set(length.columns)]
    if len(shared) < 8:
        return {}
    base = length.loc[REFERENCE, shared].to_numpy(dtype=float)
    own = length.loc[runs, shared].to_numpy(dtype=float).mean(0)
    score = win[shared].to_numpy(dtype=float)
    near = np.abs(own - base) <= 0.1 * base
    row: dict[str, Any] = {"equal_length_prompts": int(near.sum())}
    if near.sum() > 1:
        put(row, "equal_length", share_interval(crossed_mean([score[:, near]])))
    if np.ptp(own - base) > 0 and np.ptp(score.mean(0)) > 0:
        found = float(np.corrcoef(own - base, score.mean(0))[0, 1])
        half = 1.959964 / np.sqrt(len(shared) - 3)  # Fisher's z, over prompts
        row |= {"correlation": found, "correlation_low": float(np.tanh(np.arctanh(found) - half))}
        row["correlation_high"] = float(np.tanh(np.arctanh(found) + half))
    return row


def reliability(f: Findings, c: Configuration) -> Calibration | None:
    """Calibration of sigma(beta x margin) on held-out test pairs, seeds pooled; only where the loss states that probability."""
    stated = c.variant in (f.results.plan.get("states_probability") or ())
    margins = f.results.table(MARGIN, c.ids, None, TEST) if c.done and stated and isinstance(c.beta, float) else None
    if margins is None or margins.shape[1] < 2:
        return None
    return calibration(special.expit(c.beta * margins.to_numpy(dtype=float)).ravel())


def calibrations(f: Findings) -> Table:
    """Whether sigma(beta x margin) is a probability one may believe."""
    rows = []
    for c in f.configurations:
        found = reliability(f, c)
        if found is None:
            continue
        row: dict[str, Any] = {"variant": c.variant, "beta": c.beta, "ece": found.ece}
        margins = f.results.table(MARGIN, c.ids, None, TEST).to_numpy(dtype=float)
        put(row, "brier", crossed_mean([special.expit(-c.beta * margins) ** 2]))
        put(row, "accuracy", f.estimate(c.ids, f.results.first(PREFERENCE)))
        row["confidence"] = float(np.average(found.confidence, weights=found.count))
        rows.append(row | {"pairs": margins.shape[1], "seeds": len(c.done)})
    columns = [
        Column("Variant", "variant"),
        Column("β", "beta"),
        Column("Mean confidence", "confidence", 3),
        Column("Accuracy", "accuracy", 2, interval=True),
        Column("ECE", "ece", 3),
        Column("Brier", "brier", 3, interval=True),
        Column("Pairs", "pairs", 0),
        Column("Seeds", "seeds", 0),
    ]
    note = "Stated probability σ(β × margin) that the chosen answer is the better one, on held-out test pairs, for variants whose β is per nat of the summed log-ratio. Brier 0.25 is a coin. The ECE has no interval here: it is biased upwards by chance in the bins."  # noqa: E501
    return Table(
        "calibration", "Calibration of the implicit preference", pd.DataFrame(rows, dtype=object), columns, note
    )


def dynamics(f: Findings) -> Table:
    """End of training and numerical trouble, per cell."""
    rows = []
    for c in f.configurations:
        logs = [run.log for run in c.runs if len(run.log)]
        if not logs:
            continue
        clip = (c.runs[0].fields.get("recipe") or {}).get("clip")
        norms = [log["gradient_norm"].astype(float) for log in logs if "gradient_norm" in log]
        row: dict[str, Any] = {
            "variant": c.variant,
            "beta": c.beta,
            "learning_rate": c.learning_rate,
            "runs": len(logs),
        }
        row["steps"] = max(int(log["step"].max()) + 1 for log in logs) if "step" in logs[0] else len(logs[0])
        for name in ("loss", "margin", "accuracy", "chosen_logratio", "rejected_logratio"):
            row[name] = _last(c, name)
        row["gradient_norm_max"] = max(
            (float(norm[np.isfinite(norm)].max(initial=0.0)) for norm in map(np.asarray, norms)), default=None
        )
        row["clipped"] = float(np.mean([(norm > clip).mean() for norm in norms])) if clip and norms else None
        checks = [run.fields.get("checks") or {} for run in c.runs]
        row["start_gap"] = max((abs(x["start_loss"] - x["start_declared"]) for x in checks if _known(x)), default=None)
        row["reload_difference"] = max((x["reload_max_difference"] for x in checks if x.get("reload_max_difference") is not None), default=None)  # fmt: skip  # noqa: E501
        row["flags"] = ", ".join(sorted({str(flag) for run in c.runs for flag in run.fields.get("flags") or ()}))
        row["trouble"] = c.reasons
        rows.append(row | {"selected": f.chosen.get(c.variant) == c})
    columns = [
        Column("Variant", "variant"),
        Column("β", "beta"),
        Column("Runs", "runs", 0),
        Column("Loss", "loss", 3),
        Column("Margin, nats", "margin", 2),
        Column("Accuracy", "accuracy", 2),
        Column("Chosen log-ratio", "chosen_logratio", 2, signed=True),
        Column("Rejected log-ratio", "rejected_logratio", 2, signed=True),
        Column("Largest gradient norm", "gradient_norm_max", 2),
        Column("Steps clipped", "clipped", 2),
        Column("Start loss off by", "start_gap", 6),
        Column("Flags", "flags"),
        Column("Trouble", "trouble"),
    ]
    note = "Training averages over the last tenth of the steps, seeds averaged; they describe the runs and are no estimates with an interval. Losses of different variants are different quantities."  # noqa: E501
    title = "Training dynamics and numerical trouble"
    return Table("dynamics", title, pd.DataFrame(rows, dtype=object), columns, note, marked="selected" if rows else "")


def _known(checks: dict[str, Any]) -> bool:
    return checks.get("start_loss") is not None and checks.get("start_declared") is not None


def _last(c: Configuration, name: str) -> float | None:
    ends = [
        log[name].astype(float).tail(max(1, len(log) // 10)).mean() for log in (r.log for r in c.runs) if name in log
    ]
    return float(np.mean(ends)) if ends else None


def data_counts(f: Findings) -> Table:
    """What was counted while the data were read: duplicates, contradictions, rows cut or left out."""
    rows = [{"count": name, "value": value} for name, value in _flat(f.results.plan.get("data") or {}, "")]
    columns = [Column("Counted while reading the data", "count"), Column("Value", "value")]
    return Table("data", "Data: label noise, contradictions, rows left out", pd.DataFrame(rows, dtype=object), columns)


def _flat(tree: Any, prefix: str) -> list[tuple[str, Any]]:
    if not isinstance(tree, dict):
        plain = tree if isinstance(tree, (int, float, str)) and not isinstance(tree, bool) else str(tree)
        return [(prefix.replace("_", " "), plain)]
    return [leaf for key, value in tree.items() for leaf in _flat(value, f"{prefix} / {key}" if prefix else str(key))]
