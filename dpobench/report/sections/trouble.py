"""Numerical trouble inside training, and the spread between seeds."""

import math
from collections import Counter

import numpy as np
import pandas as pd

from dpobench.analysis.findings import TEST, Configuration, Findings
from dpobench.report.metrics import MARGIN, SATURATED
from dpobench.report.section import Section
from dpobench.report.sections.training_dynamics import counted
from dpobench.report.table import Column, Row, Table
from dpobench.stats.reliability import spread_between

NORM = "gradient_norm"
# A step whose gradient is so many times the median of its run is called a spike.
SPIKE = 5.0
# A training is called clipped throughout above the first share of its steps, and hardly clipped below the second.
OFTEN, SELDOM = 0.9, 0.5


def section(f: Findings) -> Section | None:
    """The section, where there are training logs."""
    tables = [numerical(f), spread(f)]
    if not any(len(table.frame) for table in tables):
        return None
    broken = sum(c.count("diverged") for c in f.configurations)
    sentences = [f"{broken} of {len(f.results.runs)} trainings stopped at a loss or gradient that was not finite."]
    return Section("numbers", "Numerical trouble, and spread between seeds", tables, sentences, notes=_unlike(f))


def _unlike(f: Findings) -> list[str]:
    """That the steps of some candidates were set by the clip and those of others were not."""
    shares = {v: _gradients(c).get("clipped", math.nan) for v, c in f.chosen.items() if v in f.candidates}
    always = [v for v, share in shares.items() if share > OFTEN]
    rarely = [v for v, share in shares.items() if share < SELDOM]
    if not always or not rarely:
        return []
    return [
        f"Gradients were clipped in nearly every step of {', '.join(always)} and seldom for {', '.join(rarely)}: their "
        "steps are not comparable, and a separate learning rate for each may do better (--lr-grid)."
    ]


def numerical(f: Findings) -> Table:
    """Gradients before clipping, largest margins, the checks of every run, per cell."""
    rows = []
    for c in f.configurations:
        logs = [run.log for run in c.runs if len(run.log)]
        if not logs:
            continue
        row: Row = {
            "variant": c.variant,
            "beta": c.beta,
            "learning_rate": c.learning_rate,
            "runs": len(logs),
        }
        row |= _gradients(c) | {"largest_margin": _largest_margin(f, c)}
        checks = [run.record.checks for run in c.runs]
        row["start_gap"] = max((abs(x.start_loss - x.start_declared) for x in checks if x.start_loss is not None and x.start_declared is not None), default=None)  # fmt: skip  # noqa: E501
        row["reload_difference"] = max((x.reload_max_difference for x in checks if x.reload_max_difference is not None), default=None)  # fmt: skip  # noqa: E501
        row["not_finite"] = c.count("diverged")
        row["trouble"] = "; ".join(text for text in (*_flags(c), c.reasons) if text)
        rows.append(row | {"selected": f.chosen.get(c.variant) == c})
    columns = [
        Column("Variant", "variant"),
        Column("β", "beta"),
        Column("Runs", "runs", 0),
        Column("Gradient norm, median", "norm_median", 2),
        Column("99 %", "norm_high", 2),
        Column("largest", "norm_largest", 2),
        Column("Steps clipped", "clipped", 2),
        Column("Spikes", "spikes", 0),
        Column("Largest margin, nats", "largest_margin", 1),
        Column("Start loss off by", "start_gap", 6),
        Column("Reload differs by", "reload_difference", 6),
        Column("Trouble", "trouble"),
    ]
    columns, size = counted(rows, columns, {"runs": "runs a cell"})
    note = size + (
        "Norms before clipping, all steps of all runs of a cell; a spike is a step above "
        f"{SPIKE:g} times the median of its run. Largest margin: of any held-out pair, either sign. Start loss: from what the loss "
        "declares where the policy is the reference. Counts and extremes of these runs, no estimates."
    )
    title, marked = "Numerical trouble", "selected" if rows else ""
    return Table("numerical", title, pd.DataFrame(rows, dtype=object), columns, note, marked=marked)


def _flags(c: Configuration) -> list[str]:
    """Flags that the trainings of a cell raised, with the number of runs where not all raised them."""
    counts = Counter(str(flag) for run in c.runs for flag in run.record.flags)
    return [
        flag if count == len(c.runs) else f"{flag} ({count} of {len(c.runs)} runs)"
        for flag, count in sorted(counts.items())
    ]


def _gradients(c: Configuration) -> dict[str, float]:
    """Norms before clipping over all steps of a cell's runs; empty where none was logged."""
    recipe = c.runs[0].record.recipe
    clip = recipe.clip if recipe else None
    norms = [run.log[NORM].astype(float).to_numpy() for run in c.runs if NORM in run.log]
    finite = [norm[np.isfinite(norm)] for norm in norms]
    steps = np.concatenate(finite) if finite else np.empty(0)
    if not len(steps):
        return {}
    spikes = sum(int((norm > SPIKE * np.median(norm)).sum()) for norm in finite if len(norm))
    summary = {"norm_median": float(np.median(steps)), "norm_high": float(np.quantile(steps, 0.99))}
    summary |= {"norm_largest": float(steps.max()), "spikes": spikes}
    return summary | ({"clipped": float(np.mean([(norm > clip).mean() for norm in norms]))} if clip else {})


def _largest_margin(f: Findings, c: Configuration) -> float | None:
    scores = f.results.scores
    margins = scores[(scores["metric"] == MARGIN) & scores["run"].isin(c.ids)]["value"]
    return float(margins.abs().max()) if len(margins) else None


def spread(f: Findings) -> Table:
    """Standard deviation between seeds of what the report compares, selected cells."""
    metrics = list(dict.fromkeys(m for m in (f.ranking, f.preference, f.distance, f.length, SATURATED) if m))
    rows = []
    for variant, c in f.chosen.items():
        row: Row = {"variant": variant, "beta": c.beta, "seeds": len(c.done)}
        for metric in metrics if len(c.done) > 1 else ():
            table = f.results.table(metric, c.ids, None, TEST)
            if table.shape[1] > 1:
                deviation = spread_between(table.to_numpy(dtype=float).mean(1))
                row |= dict(zip((metric, f"{metric}_low", f"{metric}_high"), deviation, strict=True))
        if any(metric in row for metric in metrics):
            rows.append(row)
    columns = [Column("Variant", "variant"), Column("β", "beta")]
    for metric in metrics:
        known = f.results.metrics.get(metric)
        unit = f", {known.unit}" if known and known.unit != "share" else ""
        columns.append(Column(f"{f.results.heading(metric)}{unit}", metric, 3, interval=True))
    columns, size = counted(rows, [*columns, Column("Seeds", "seeds", 0)], {"seeds": "seeds"})
    note = size + (
        "Standard deviation between the seeds' means over test prompts; answers are drawn anew for each seed, and their chance is in it. "
        "Interval from chi-squared, seeds taken as normal: few seeds determine their spread poorly, which is why a difference between "
        "methods needs several."
    )
    return Table("seed_spread", "Spread between seeds", pd.DataFrame(rows, dtype=object), columns, note)
