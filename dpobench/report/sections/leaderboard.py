"""The tables of results: leaderboard, full grid, benchmarks, compute, trials."""

import numpy as np
import pandas as pd

from dpobench.analysis.documents import changes
from dpobench.analysis.findings import SELECTION, Configuration, Findings, put
from dpobench.analysis.results import BENCHMARK, REFERENCE
from dpobench.report.metrics import ENDED, PER_TOKEN, REWARD, companion
from dpobench.report.sections.compute import compute as compute
from dpobench.report.sections.controls import best_of_rows
from dpobench.report.sections.length import length_controlled_of
from dpobench.report.sections.statistics import letters_of, verdict_of
from dpobench.report.sections.training_dynamics import counted
from dpobench.report.table import Column, Row, Table
from dpobench.report.words import UNEQUAL
from dpobench.stats.tradeoff import pareto

DIFFERENCE, DELTA = "difference_to_control", "benchmark_delta"
# A baseline's verdict: it is compared with the control, and nothing is claimed of it.
BASELINE = "baseline"

IDENTITY = ("variant", "beta", "unit", "params", "learning_rate", "seeds", "seeds_planned", "n_prompts", "level")
VERDICT = (DIFFERENCE, f"{DIFFERENCE}_low", f"{DIFFERENCE}_high", "p", "p_adjusted", "verdict")


def leaderboard(f: Findings) -> Table:
    """One row per candidate at its chosen strength, best first, then the baselines and the reference."""
    sign = -1.0 if f.direction == "lower" else 1.0
    values = {v: e.value if (e := f.estimate(c.ids, f.ranking)) else 0.0 for v, c in f.chosen.items()}
    order = sorted(f.chosen, key=lambda variant: (variant in f.baselines, -sign * values[variant]))
    rows = [_leader(f, f.chosen[variant]) for variant in order]
    rows += [_unfinished(f, variant) for variant in f.variants if variant not in f.chosen]
    rows.append(_reference(f))
    rows += _best_of(f)
    signs, controlled = letters_of(f), length_controlled_of(f)
    for row in rows:
        row["letters"] = signs.get(str(row["variant"]), "")
        put(row, "length_controlled", controlled.get(str(row["variant"])))
    frame = pd.DataFrame(rows, dtype=object)
    frame["is_apart"] = frame["is_reference"] | frame["is_baseline"]
    # Other programs look for these even where nothing has finished.
    frame = frame.reindex(columns=list(dict.fromkeys([*IDENTITY, *frame.columns, *VERDICT])))
    columns = [
        Column("Variant", "variant", bold="significant"),
        Column("β", "cell"),
        Column("Learning rate", "learning_rate") if len({c.learning_rate for c in f.configurations}) > 1 else None,
        Column(f.results.heading(f.ranking), f.ranking, 2, interval=True) if f.ranking else None,
        Column(f"Difference to {f.results.control}", DIFFERENCE, 3, interval=True, signed=True, bold="significant"),
        Column("p (Holm)", "p_adjusted", 3, bold="significant"),
        Column("Verdict", "verdict", bold="significant"),
        Column("Letters", "letters") if len(signs) > 2 else None,
        Column("At equal length", "length_controlled", 2, interval=True),
        Column("Reward", "reward", 2, interval=True),
        Column(f.results.heading(f.distance), f.distance, 2, interval=True) if f.distance else None,
        Column("per token", companion(f, PER_TOKEN), 3) if f.distance else None,
        Column("Benchmark delta", DELTA, 3, interval=True, signed=True),
        Column("Length ratio", "length_ratio", 2, interval=True),
        Column("Seeds", "seeds", 0),
        Column("Prompts", "n_prompts", 0),
        Column("Trials", "trials", 0) if f.unequal_trials else None,
    ]
    units = {"n_prompts": "test prompts", "seeds": "seeds"}
    shown, note = counted(rows, [column for column in columns if column], units)
    if controlled:
        note += "At equal length: win-rate had both answers been of one length. "
    if len(signs) > 2:
        note += "Variants that share a letter were not shown to differ (all pairs, Holm)."
    return Table(
        "leaderboard",
        "Leaderboard: each variant at its selected β",
        frame,
        shown,
        note.strip(),
        hidden=("cell", "significant", "is_reference", "is_baseline", "is_apart"),
        marked="is_apart",
    )


def _measure(f: Findings, runs: list[str], split: str = "test") -> Row:
    row: Row = {}
    # Without a judge, or without a distance, the columns that other programs look for are there and empty.
    put(row, f.headline or "win_rate", f.estimate(runs, f.headline, split))
    put(row, f.distance or "distance", f.estimate(runs, f.distance, split))
    per_token = companion(f, PER_TOKEN)
    put(row, per_token if f.distance else "distance_per_token", f.estimate(runs, per_token, split))
    if f.preference:
        put(row, f.preference, f.estimate(runs, f.preference, split))
    if f.length:
        put(row, f.length, f.estimate(runs, f.length, split))
    put(row, "length_ratio", f.length_ratio(runs))
    if f.headline and REWARD in f.results.metrics:
        put(row, "reward", f.estimate(runs, REWARD, split))
    put(row, ENDED, f.estimate(runs, ENDED, split))
    put(row, DELTA, f.benchmark_delta(runs))
    return row


def _identity(f: Findings, c: Configuration) -> Row:
    beta = f"{c.beta:g}" if isinstance(c.beta, float) else "" if c.beta is None else str(c.beta)
    return {
        "variant": c.variant,
        "beta": c.beta,
        "cell": ", ".join(part for part in (beta, c.params) if part),
        "unit": c.unit,
        "params": c.params,
        "learning_rate": c.learning_rate,
        "seeds": len(c.done),
        "seeds_planned": len(c.runs),
    }


def _leader(f: Findings, c: Configuration) -> Row:
    cells = [other for other in f.configurations if other.variant == c.variant]
    measured = f.estimate(c.ids, f.ranking)
    row = _identity(f, c) | {
        "n_prompts": measured.n_prompts if measured else 0,
        "level": measured.level if measured else "",
        **_measure(f, c.ids),
    }
    comparison = f.comparisons.get(c.variant)
    row |= {DIFFERENCE: None, f"{DIFFERENCE}_low": None, f"{DIFFERENCE}_high": None, "p": None, "p_adjusted": None}
    row["verdict"] = "control" if c.variant == f.results.control else "not compared"
    row["significant"] = False
    if comparison:
        row |= {
            DIFFERENCE: comparison.estimate,
            f"{DIFFERENCE}_low": comparison.low,
            f"{DIFFERENCE}_high": comparison.high,
        }
        row |= {"p": comparison.p, "p_adjusted": comparison.p_adjusted, "level": comparison.level}
        row["verdict"] = verdict_of(f, c.variant)
        row["significant"] = comparison.level == "method" and comparison.p_adjusted < f.results.alpha
    elif c.variant in f.baselines:
        row["verdict"] = BASELINE
        control = f.chosen.get(f.results.control or "")
        put(row, DIFFERENCE, f.difference(c.ids, control.ids) if control else None)
    return row | {
        "complete": len(c.done) == len(c.runs),
        "trials": len(cells),
        "runs": sum(len(other.runs) for other in cells),
        "runs_failed": sum(other.broken for other in cells),
        "run_ids": " ".join(c.ids),
        "is_reference": False,
        "is_baseline": c.variant in f.baselines,
    }


def _unfinished(f: Findings, variant: str) -> Row:
    cells = [c for c in f.configurations if c.variant == variant]
    return {
        "variant": variant,
        "seeds": 0,
        "n_prompts": 0,
        "level": "",
        "verdict": "no eligible configuration",
        "significant": False,
        "trials": len(cells),
        "runs": sum(len(c.runs) for c in cells),
        "runs_failed": sum(c.broken for c in cells),
        "run_ids": "",
        "is_reference": False,
        "is_baseline": variant in f.baselines,
    }


def _reference(f: Findings) -> Row:
    measured = f.estimate([REFERENCE], f.ranking)
    return {
        "variant": REFERENCE,
        "seeds": None,
        "n_prompts": measured.n_prompts if measured else 0,
        "level": REFERENCE,
        "verdict": "the start of every run",
        **_measure(f, [REFERENCE]),
        "significant": False,
        "run_ids": f.results.plan.reference,
        "is_reference": True,
        "is_baseline": False,
    }


def _best_of(f: Findings) -> list[Row]:
    """The best of several answers of the reference: the gain of choosing among its answers, without any training."""
    controls = best_of_rows(f)
    if not controls or f.headline is None:
        return []
    best = controls[-1]
    row: Row = {"variant": best.label, "n_prompts": best.win_rate.n_prompts}
    put(row, f.headline, best.win_rate)
    put(row, "reward", best.reward)
    row |= {f.distance or "distance": best.kl_bound, "level": REFERENCE, "significant": False, "run_ids": ""}
    row["verdict"] = "no training; the distance is its bound"
    return [row | {"is_reference": True, "is_baseline": False}]


def grid(f: Findings) -> Table:
    """Every cell, finished or not."""
    selected = {c.key for c in f.chosen.values()}
    rows = []
    for c in f.configurations:
        row = _identity(f, c) | _measure(f, c.ids)
        measured = f.estimate(c.ids, f.ranking)
        row |= {"n_prompts": measured.n_prompts if measured else 0, "level": measured.level if measured else ""}
        if f.ranking:
            put(row, f"{f.ranking}_{SELECTION}", f.estimate(c.ids, f.ranking, SELECTION))
        logs = [run.log for run in c.done if len(run.log)]
        row["final_loss"] = float(np.mean([_tail(log, "loss") for log in logs])) if logs else None
        row["gradient_norm"] = float(np.mean([_tail(log, "gradient_norm") for log in logs])) if logs else None
        row["status"] = "done" if len(c.done) == len(c.runs) else c.reasons
        row |= {"reason": c.reasons, "selected": c.key in selected, "run_ids": " ".join(run.id for run in c.runs)}
        rows.append(row)
    frame = pd.DataFrame(rows, dtype=object)
    at = frame[f.distance or "distance"].astype(float)
    value = frame[f.ranking].astype(float) if f.ranking in frame else at * np.nan
    frame["pareto"] = [bool(flag) for flag in pareto(at, -value if f.direction == "lower" else value)]
    frame["choice"] = ["selected" if s else "" for s in frame["selected"]]
    frame["front"] = ["yes" if p else "" for p in frame["pareto"]]
    columns = [
        Column("Variant", "variant"),
        Column("β", "cell"),
        Column("Learning rate", "learning_rate") if len({c.learning_rate for c in f.configurations}) > 1 else None,
        Column("Seeds", "seeds", 0),
        Column(f"{f.results.heading(f.ranking)}, test", f.ranking, 2, interval=True) if f.ranking else None,
        Column("on selection", f"{f.ranking}_{SELECTION}", 2, interval=True) if f.ranking else None,
        Column(f.results.heading(f.distance), f.distance, 2, interval=True) if f.distance else None,
        Column(f.results.heading(f.preference), f.preference, 2, interval=True)
        if f.preference and f.headline
        else None,
        Column("Benchmark delta", DELTA, 3, interval=True, signed=True),
        Column("Final loss", "final_loss", 3),
        Column("Pareto", "front"),
        Column("Choice", "choice"),
        Column("Status", "status"),
    ]
    return Table(
        "grid",
        "Full grid: every cell, also those that failed",
        frame,
        [column for column in columns if column],
        _grid_note(f),
        marked="selected",
        hidden=("cell", "choice", "front"),
    )


def _grid_note(f: Findings) -> str:
    counts = []
    for split in ("test", SELECTION):
        sizes = sorted(
            {
                estimate.n_prompts
                for c in f.configurations
                if (estimate := f.estimate(c.ids, f.ranking, split)) is not None
            }
        )
        if sizes:
            counts.append(f"{' to '.join(str(size) for size in dict.fromkeys((sizes[0], sizes[-1])))} {split} prompts")
    size = f"{' and '.join(counts)}; seeds pooled. " if counts else ""
    return (
        size
        + "Intervals are not adjusted for the number of cells; final loss is the mean over the last tenth of the steps."
    )


def _tail(log: pd.DataFrame, column: str) -> float:
    """Mean over the last tenth of the steps: a single step is one batch's luck."""
    if column not in log:
        return float("nan")
    return float(log[column].astype(float).tail(max(1, len(log) // 10)).mean())


def benchmarks(f: Findings) -> Table:
    """Per chosen configuration and task: score, the reference's, paired delta, documents gained and lost."""
    rows = []
    for change in changes(f):
        row: Row = {
            "variant": change.variant,
            "beta": change.beta,
            "task": change.task,
            "metric": change.metric,
        }
        put(row, "value", change.value)
        put(row, "reference_value", change.reference)
        put(row, "delta", change.delta)
        row |= {"gained": change.gained, "lost": change.lost, "p": change.p, "test": change.test}
        row |= {"documents": change.delta.n_prompts, "seeds": change.delta.seeds, "level": change.delta.level}
        rows.append(row | {"chance": change.chance, "p_adjusted": change.p_adjusted, "tied": change.tied or None})
    columns = [
        Column("Variant", "variant"),
        Column("β", "beta"),
        Column("Task", "task"),
        Column("Metric", "metric"),
        Column("Chance", "chance", 2),
        Column("Reference", "reference_value", 2, interval=True),
        Column("Score", "value", 2, interval=True),
        Column("Paired delta", "delta", 3, interval=True, signed=True),
        Column("Gained", "gained", 1),
        Column("Lost", "lost", 1),
        Column("p (BH)", "p_adjusted", 3),
        Column("Tied", "tied", 2),
        Column("Documents", "documents", 0),
        Column("Seeds", "seeds", 0),
    ]
    note = (
        "Deltas are on the same documents, p-values adjusted over tasks and variants by Benjamini and Hochberg. With one seed they "
        "hold for a checkpoint. Gained and lost: documents that became right and wrong against the reference, mean over seeds."
    )
    empty = [c.key for c in columns] + ["p", "level"]
    frame = pd.DataFrame(rows, columns=None if rows else empty, dtype=object)
    return Table(f"{BENCHMARK}s", "Held-out benchmarks: paired deltas to the reference", frame, columns, note)


def trials(f: Findings) -> Table:
    """The number of trials of each variant."""
    rows = []
    for variant in f.variants:
        cells = [c for c in f.configurations if c.variant == variant]
        row: Row = {"variant": variant, "trials": len(cells), "runs": sum(len(c.runs) for c in cells)}
        row |= {status: sum(c.count(status) for c in cells) for status in ("done", "diverged", "failed", "missing")}
        row["role"] = BASELINE if variant in f.baselines else ""
        row["betas"] = ", ".join(dict.fromkeys(str(c.beta) for c in cells if c.beta is not None))
        row["params"] = "; ".join(dict.fromkeys(c.params for c in cells if c.params))
        row["rates"] = ", ".join(dict.fromkeys(f"{c.learning_rate:g}" for c in cells if c.learning_rate is not None))
        row["unit"] = cells[0].unit
        row["given"] = ", ".join(f.results.given(variant))
        rows.append(row)
    columns = [
        Column("Variant", "variant"),
        Column("Configurations", "trials", 0),
        Column("Runs", "runs", 0),
        Column("Done", "done", 0),
        Column("Diverged", "diverged", 0),
        Column("Failed", "failed", 0),
        Column("Missing", "missing", 0),
        Column("β", "betas"),
        Column("Unit of β", "unit"),
        Column("Other parameters", "params"),
        Column("Learning rate", "rates"),
        Column("Role", "role"),
        Column("Also given", "given") if any(row["given"] for row in rows) else None,
    ]
    note = UNEQUAL if f.unequal_trials else "Every variant had the same number of trials."
    note += " Baselines are trained at their defaults; they are not counted." if f.baselines else ""
    shown = [column for column in columns if column]
    return Table("trials", "Hyper-parameters and trials per variant", pd.DataFrame(rows, dtype=object), shown, note)
