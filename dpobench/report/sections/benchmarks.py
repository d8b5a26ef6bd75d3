"""Benchmarks document by document: a heat map of paired deltas, and each checkpoint's own test."""

import pandas as pd
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from dpobench.analysis.documents import Change, changes
from dpobench.analysis.findings import Findings
from dpobench.analysis.results import REFERENCE
from dpobench.report.figures import canvas, plain
from dpobench.report.section import Section
from dpobench.report.table import Column, Table, number

# Share of documents whose options look alike to the model from which a score says little.
MANY_TIED = 0.05
# Orange through grey to blue; every shade carries black print, on a white page and on a black one.
_COLOURS = LinearSegmentedColormap.from_list("delta", ["#e08a3c", "#f0c79c", "#e4e6e9", "#a3cbe8", "#4f9fd3"])
_PRINT = "#101317"
_MOST = 12


def section(f: Findings) -> Section | None:
    """The section; None where no task was scored."""
    found, silent = changes(f), unshown(f)
    if not found:
        return Section("documents", "Benchmarks, document by document", sentences=[silent]) if silent else None
    caption = (
        "Paired delta to the reference in points of each task's metric, selected cells; bold where the adjusted p-value is below "
        f"{f.results.alpha:g} with two seeds or more. The colours reach equally far on both sides of zero."
    )
    drawn = {"benchmark_deltas": (caption, heat_map(f, found))}
    return Section(
        "documents",
        "Benchmarks, document by document",
        [checkpoints(f, found)],
        [silent] if silent else [],
        drawn,
        [*warnings(found), *truncations(f)],
    )


def unshown(f: Findings) -> str:
    """Tasks that were scored, but have neither accuracy nor exact match: their numbers are in the scores of each run alone."""
    scores = f.results.scores
    own = scores[(scores["run"] == REFERENCE) & (scores["group"] != "")].drop_duplicates("group")
    # Only a benchmark names its documents by the task.
    tasks = [
        task for task, document in zip(own["group"], own["prompt"], strict=True) if document.startswith(f"{task}/")
    ]
    lost = sorted(set(map(str, tasks)) - {task for _, task in f.tasks})
    if not lost:
        return ""
    return (
        f"Scored, but shown in no table, for want of an accuracy or exact match: {', '.join(lost)}. Their perplexities and other metrics "
        "lie in scores/benchmarks.parquet of each run."
    )


def truncations(f: Findings) -> list[str]:
    """Tasks whose documents did not fit the context whole."""
    cut = {
        task: float(f.results.table("truncated", [REFERENCE], task).to_numpy().mean())
        for task in f.results.groups("truncated")
    }
    if not cut:
        return []
    named = ", ".join(f"{task} ({100 * share:.0f} % of the documents)" for task, share in sorted(cut.items()))
    return [
        f"Contexts lost their start, because they are longer than the model's: {named}. lm-eval cuts them in the same way."
    ]


def checkpoints(f: Findings, found: list[Change]) -> Table:
    """One row per task, variant and seed: what that checkpoint gained and lost, and its own test."""
    rows = []
    for change in found:
        seeds = [run.seed for run in f.chosen[change.variant].done]
        told = {"variant": change.variant, "beta": change.beta, "task": change.task, "metric": change.metric}
        for seed, gained, lost, p in zip(seeds, change.gains, change.losses, change.each, strict=True):
            ends = {"gained": gained, "lost": lost, "p": p, "test": change.single_test}
            rows.append(told | {"seed": seed} | ends | {"documents": change.delta.n_prompts})
    columns = [
        Column("Variant", "variant"),
        Column("β", "beta"),
        Column("Task", "task"),
        Column("Metric", "metric"),
        Column("Seed", "seed", 0),
        Column("Gained", "gained", 0),
        Column("Lost", "lost", 0),
        Column("p, this checkpoint", "p", 3),
        Column("Test", "test"),
        Column("Documents", "documents", 0),
    ]
    note = (
        "Each checkpoint against the reference on the same documents, not adjusted: McNemar's test, or a permutation of the differences "
        "where scores are graded. It knows documents only, so it speaks of one training; for the method see the paired deltas above, "
        "which count seeds too."
    )
    return Table(
        "benchmark_documents", "Documents gained and lost, by seed", pd.DataFrame(rows, dtype=object), columns, note
    )


def heat_map(f: Findings, found: list[Change]) -> Figure:
    """Variants by tasks, coloured and printed; the tasks that moved most where there are too many."""
    moved: dict[tuple[str, str], float] = {}
    for change in found:
        key = (change.task, change.metric)
        moved[key] = max(moved.get(key, 0.0), abs(change.delta.value))
    shown = sorted(moved, key=lambda key: -moved[key])[:_MOST]
    tasks = [key for key in moved if key in shown]
    variants = list(dict.fromkeys(change.variant for change in found))
    reach = max(max(moved.values()), 0.01)
    figure, (axis, *_) = canvas(1, 1, 8.2, 1.6 + 0.34 * len(variants))
    for change in found:
        if (change.task, change.metric) not in tasks:
            continue
        x, y, value = tasks.index((change.task, change.metric)), variants.index(change.variant), change.delta.value
        axis.barh(y, 1, 0.96, x - 0.5, color=_COLOURS(0.5 + 0.5 * value / reach), edgecolor="none")
        sure = change.delta.level == "method" and change.p_adjusted < f.results.alpha
        text = number(100 * value, 1, signed=True)
        weight = "bold" if sure else "normal"
        axis.text(x, y, text, ha="center", va="center", color=_PRINT, fontsize=8.5, fontweight=weight)
    axis.set_yticks(range(len(variants)), [plain(name) for name in variants])
    axis.set_xticks(range(len(tasks)), [plain(_short(task)) for task, _ in tasks], rotation=30, ha="right")
    axis.set_xlim(-0.5, len(tasks) - 0.5)
    axis.set_ylim(len(variants) - 0.5, -0.5)
    axis.grid(visible=False)
    axis.tick_params(length=0)
    for spine in axis.spines.values():
        spine.set_visible(False)
    return figure


def _short(task: str) -> str:
    return task if len(task) <= 28 else f"{task[:26]}.."


def warnings(found: list[Change]) -> list[str]:
    """What makes a task's numbers say little."""
    tied = {change.task: max(change.tied, change.reference_tied) for change in found}
    many = {task: share for task, share in tied.items() if share > MANY_TIED}
    if not many:
        return []
    worst = sorted(many.items(), key=lambda item: -item[1])[:4]
    named = ", ".join(f"{task} ({100 * share:.0f} %)" for task, share in worst)
    more = f" and {len(many) - 4} more" if len(many) > 4 else ""
    return [
        f"Options look alike to the model on many documents of {named}{more}: its tokenizer does not tell them apart, and lm-eval then "
        "counts the first option as its answer, right or wrong. These accuracies mean little."
    ]
