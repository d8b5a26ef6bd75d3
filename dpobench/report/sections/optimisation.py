"""Over-optimisation on the policy's samples, and the form of these samples."""

from collections.abc import Collection, Sequence

import pandas as pd

from dpobench.analysis.findings import TEST, Configuration, Findings, put
from dpobench.analysis.results import REFERENCE
from dpobench.artifacts.records import Cell
from dpobench.report.metrics import DISTINCT_1, DISTINCT_2, ENDED, ENTROPY, LOG_RATIO, REPETITION, REWARD
from dpobench.report.section import Section
from dpobench.report.sections.training_dynamics import counted
from dpobench.report.table import Column, Row, Table
from dpobench.stats.crossed import Estimate, crossed_mean
from dpobench.stats.reliability import crossed_correlation

_UNITS = {"n_prompts": "test prompts", "seeds": "seeds"}


def section(f: Findings) -> Section | None:
    """The section, where answers were scored one by one."""
    tables = [own_reward(f), texture(f)]
    if not any(len(table.frame) for table in tables):
        return None
    gaps = [
        f"{row['variant']} at β {row['beta']}" for row in tables[0].frame.to_dict("records") if row["reading"] == "gap"
    ]
    sentences = []
    if gaps:
        sentences.append(
            f"The policy's implicit reward rises while the judge's falls, compared with the selected cell: {listed(gaps)}. This is "
            "over-optimisation: the quantity that the loss measures improves, the judge's reward does not."
        )
    return Section("policy-answers", "The policy's answers: implicit reward and form", tables, sentences)


def listed(names: Sequence[str], most: int = 8) -> str:
    """The first names of a list, and how many more there are."""
    more = f"; and {len(names) - most} more" if len(names) > most else ""
    return "; ".join(names[:most]) + more


def own_reward(f: Findings) -> Table:
    """Implicit reward of the policy's answers and the judge's reward, every cell."""
    # At another temperature than 1 the log-ratios are of answers that were not judged.
    alike, rows = f.results.experiment.evaluation.temperature == 1.0, []
    for c in f.configurations:
        ratio, gold = _pair(f, c, LOG_RATIO), _pair(f, c, REWARD)
        shared = [prompt for prompt in gold.columns if prompt in ratio.columns]
        if len(shared) < 2:
            continue
        x, y = ratio[shared].to_numpy(dtype=float), gold[shared].to_numpy(dtype=float)
        row: Row = {"variant": c.variant, "beta": c.beta, "n_prompts": len(shared), "seeds": len(c.done)}
        put(row, "log_ratio", crossed_mean([x]))
        # A reward in the units of the judge is stated only by losses whose strength is per nat of the summed log-ratio.
        stated = c.unit == "nat" and isinstance(c.beta, float)
        put(row, "implicit", crossed_mean([c.beta * x]) if stated else None)
        put(row, "gold_gain", over_reference(f, c.ids, REWARD, set(shared)))
        put(row, "correlation", crossed_correlation(x, y) if alike else None)
        row["selected"] = f.chosen.get(c.variant) == c
        row["reading"] = "selected" if row["selected"] else _gap(f, c)
        rows.append(row)
    columns = [
        Column("Variant", "variant"),
        Column("β", "beta"),
        Column("Log-ratio of the policy's answers, nats", "log_ratio", 2, interval=True),
        Column("β × log-ratio", "implicit", 2, interval=True),
        Column("Judge's reward less the reference's", "gold_gain", 3, interval=True, signed=True),
        Column("Correlation of both", "correlation", 2, interval=True, signed=True),
        Column("Reading", "reading"),
        Column("Prompts", "n_prompts", 0),
        Column("Seeds", "seeds", 0),
    ]
    columns, size = counted(rows, columns, _UNITS)
    note = size + (
        "The log-ratio of an answer the policy drew is its implicit reward over β; on average it is the distance to the reference. "
        "Correlation over prompts of one answer's log-ratio with the judge's reward, averaged over seeds: near zero or below, "
        "the loss raised something that the judge does not reward. A gap: farther than the selected cell, and worse for the judge, both "
        "intervals of the difference clear of zero (not adjusted for the number of cells). The axis is β; "
        "for the steps, score checkpoints (--checkpoints)."
    )
    if not alike:
        note += " The log-ratios are of further answers, drawn at temperature 1, and not of those judged: so there is no correlation."
    title, marked = "Implicit reward against the judge's, on the policy's answers", "selected" if rows else ""
    return Table("own_reward", title, pd.DataFrame(rows, dtype=object), columns, note, marked=marked)


def _pair(f: Findings, c: Configuration, metric: str) -> pd.DataFrame:
    return f.results.table(metric, c.ids, None, TEST) if c.done else pd.DataFrame()


def over_reference(
    f: Findings, runs: Sequence[str], metric: str, prompts: Collection[str] | None = None
) -> Estimate | None:
    """A metric of some runs less the reference's on the same test prompts, all or some of those that both have."""
    values, base = f.results.table(metric, list(runs), None, TEST), f.results.table(metric, [REFERENCE], None, TEST)
    shared = [p for p in values.columns if p in base.columns and (prompts is None or p in prompts)]
    if len(shared) < 2:
        return None
    return crossed_mean([values[shared].to_numpy(dtype=float) - base.loc[REFERENCE, shared].to_numpy(dtype=float)])


def _gap(f: Findings, c: Configuration) -> str:
    best = f.chosen.get(c.variant)
    if best is None:
        return ""
    farther, gain = (f.difference(c.ids, best.ids, metric) for metric in (LOG_RATIO, REWARD))
    return "gap" if farther is not None and gain is not None and farther.low > 0 and gain.high < 0 else ""


def texture(f: Findings) -> Table:
    """End, repetition, diversity and entropy of the answers, selected cells and the reference."""
    metrics = (ENDED, REPETITION, DISTINCT_1, DISTINCT_2, ENTROPY)
    rows = []
    shown: list[tuple[str, Cell, list[str]]] = [(v, c.beta, c.ids) for v, c in f.chosen.items()]
    for variant, beta, runs in [*shown, (REFERENCE, None, [REFERENCE])]:
        estimates = {name: f.estimate(runs, name) for name in metrics}
        sizes = [one.n_prompts for one in estimates.values() if one is not None]
        if not sizes:
            continue
        row: Row = {"variant": variant, "beta": beta, "n_prompts": max(sizes)}
        for name, one in estimates.items():
            put(row, name, one)
        one = estimates[ENTROPY]
        row["entropy_prompts"] = one.n_prompts if one and one.n_prompts < max(sizes) else None
        rows.append(row | {"seeds": len(runs) if variant != REFERENCE else None})
    columns = [
        Column("Variant", "variant"),
        Column("β", "beta"),
        Column("Ended by itself", ENDED, 3, interval=True),
        Column("Repeated 4-grams", REPETITION, 3, interval=True),
        Column("Distinct tokens", DISTINCT_1, 3, interval=True),
        Column("Distinct 2-grams", DISTINCT_2, 3, interval=True),
        Column("Entropy, nats per token", ENTROPY, 3, interval=True),
        Column("of prompts", "entropy_prompts", 0),
        Column("Prompts", "n_prompts", 0),
        Column("Seeds", "seeds", 0),
    ]
    columns, size = counted(rows, columns, {**_UNITS, "entropy_prompts": "of them with entropy"})
    note = size + (
        "An answer that did not end by itself was cut at the limit. Repeated: 4-grams of tokens that occurred before in the same answer. "
        "Distinct: different ones over all, within an answer; short answers have more. Entropy of the policy's next token, exact over the "
        "vocabulary, averaged over the positions it drew: a fall means that the policy became surer, not better."
    )
    return Table("texture", "Form of the sampled answers", pd.DataFrame(rows, dtype=object), columns, note)
