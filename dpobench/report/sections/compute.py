"""The cost of the runs: time, passes, memory, and the gain of an hour."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from dpobench.analysis.findings import Findings, put
from dpobench.analysis.results import REFERENCE, RunResult
from dpobench.artifacts.records import Provenance
from dpobench.report.table import Column, Row, Table
from dpobench.stats.crossed import Estimate


def compute(f: Findings) -> Table:
    """Where the time went, per variant."""
    rows = []
    for variant in f.variants:
        done = [run for c in f.configurations if c.variant == variant for run in c.done]
        seconds = {s: sum(r.record.seconds.get(s, 0.0) for r in done) for s in ("train", "sampling", "evaluate")}
        tokens = sum(r.record.tokens for r in done)
        row: Row = {
            "variant": variant,
            "runs_done": len(done),
            "steps": sum(r.record.steps for r in done),
        }
        row |= {f"{stage}_seconds": value for stage, value in seconds.items()}
        row |= {"tokens": tokens, "tokens_per_second": tokens / seconds["train"] if seconds["train"] else None}
        row |= _passes(done)
        put(row, "gain_per_hour", _gain_per_hour(f, variant))
        rows.append(row)
    columns = [
        Column("Variant", "variant"),
        Column("Finished runs", "runs_done", 0),
        Column("Training, s", "train_seconds", 1),
        Column("Sampling, s", "sampling_seconds", 1),
        Column("Scoring, s", "evaluate_seconds", 1),
        Column("Tokens/s", "tokens_per_second", 0),
        Column("Forward passes a pair", "forwards", 2),
        Column("Backward passes a pair", "backwards", 2),
        Column("Peak memory, MB", "peak_megabytes", 0),
        Column(
            f"{f.results.heading(f.ranking or '')} gained per {_hour(f)} of training",
            "gain_per_hour",
            1,
            interval=True,
            signed=True,
        ),
    ]
    note = (
        "Sums over the finished runs of a variant. Passes per pair and step, policy and live reference together; log-probabilities of the "
        "reference that are computed once for all variants are not counted. Peak memory: the largest of any run, while it trained; on a "
        "CPU the whole process, on a GPU what its allocator gave out. Gain: the selected cell's difference to the reference over the mean "
        "training time of its runs; it is the gain of this training, not of a longer one."
    )
    title = "Compute: sums over the finished runs of a variant"
    return Table("compute", title, pd.DataFrame(rows, dtype=object), columns, note)


def _passes(runs: Sequence[RunResult]) -> Row:
    """Passes per pair and step, and the highest peak, of the runs that recorded them."""
    trained = [run.record for run in runs if run.record.cost]
    costs = [record.cost for record in trained if record.cost]
    pairs = sum(record.steps * record.recipe.batch for record in trained if record.recipe)
    peaks = [cost.peak_bytes for cost in costs if cost.peak_bytes]
    passes = {
        name: sum(getattr(cost, name) for cost in costs) / pairs if pairs else None
        for name in ("forwards", "backwards")
    }
    return passes | {"peak_megabytes": max(peaks) / 1e6 if peaks else None}


def _hour(f: Findings) -> str:
    """The device whose hours are counted: a CPU core, or a GPU."""
    devices = {run.record.provenance.device for run in f.results.runs if run.record.provenance}
    return "CPU core-hour" if devices <= {"cpu"} else "GPU-hour"


def _gain_per_hour(f: Findings, variant: str) -> Estimate | None:
    """Ranking metric gained over the reference in an hour of one core or GPU, at the selected strength."""
    c = f.chosen.get(variant)
    gain = f.difference(c.ids, [REFERENCE]) if c else None
    if c is None or gain is None:
        return None
    hours = []
    for run in c.done:
        made = run.record.provenance or Provenance()
        width = made.world_size * (made.threads if made.device == "cpu" else 1)
        hours.append(width * run.record.seconds.get("train", 0.0) / 3600)
    mean = float(np.mean(hours))
    if mean <= 0:
        return None
    return replace(gain, value=gain.value / mean, low=gain.low / mean, high=gain.high / mean, se=gain.se / mean)
