"""Benchmarks document by document: a heat map of paired deltas, and a test of each checkpoint."""

import pandas as pd
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from dpobench.analysis.documents import Change, changes
from dpobench.analysis.findings import Findings
from dpobench.analysis.results import REFERENCE
from dpobench.report.figures import canvas, plain
from dpobench.report.metrics import TRUNCATED
from dpobench.report.section import Section
from dpobench.report.table import Column, Table, number

# Share of documents whose options look alike to the model above which a score means little.
MANY_TIED = 0.05
# Orange through grey to blue; every shade carries black print, on a white page and on a black one.
_COLOURS = LinearSegmentedColormap.from_list("delta", ["#e08a3c", "#f0c79c", "#e4e6e9", "#a3cbe8", "#4f9fd3"])
_PRINT = "#101317"
_MOST = 12


def section(f: Findings) -> Section | None:
    """The section; None where no task was scored."""
    compared, silent = changes(f), unshown(f)
    if not compared:
        return Section("documents", "Benchmarks, document by document", sentences=[silent]) if silent else None
    caption = (
        "Paired delta to the reference in points of each task's metric, selected cells; bold where the adjusted p-value is below "
        f"{f.results.alpha:g} with two seeds or more. The colour scale is symmetric around zero."
    )
    drawn = {"benchmark_deltas": (caption, heat_map(f, compared))}
    return Section(
        "documents",
        "Benchmarks, document by document",
        [checkpoints(f, compared)],
        [silent] if silent else [],
        drawn,
        [*warnings(compared), *truncations(f)],
    )


def unshown(f: Findings) -> str:
    """Tasks that were scored, but have neither accuracy nor exact match: the section of further metrics has their numbers."""
    scores = f.results.scores
    documents = scores[(scores["run"] == REFERENCE) & (scores["group"] != "")].drop_duplicates("group")
    # Only a benchmark names its documents by the task.
    tasks = [
        task
        for task, document in zip(documents["group"], documents["prompt"], strict=True)
        if document.startswith(f"{task}/")
    ]
    without = sorted(set(map(str, tasks)) - {task for _, task in f.tasks})
    if not without:
        return ""
    return (
        f"Scored, but not in these tables, for want of an accuracy or exact match: {', '.join(without)}. Their perplexities and "
        "other metrics are among the further metrics."
    )


def truncations(f: Findings) -> list[str]:
    """Tasks whose documents did not fit the context whole."""
    cut = {
        task: float(f.results.table(TRUNCATED, [REFERENCE], task).to_numpy().mean())
        for task in f.results.groups(TRUNCATED)
    }
    if not cut:
        return []
    named = ", ".join(f"{task} ({100 * share:.0f} % of the documents)" for task, share in sorted(cut.items()))
    return [
        f"Questions were cut at their start, because they are longer than the model's context: {named}. lm-eval cuts them in the same way."
    ]


def checkpoints(f: Findings, compared: list[Change]) -> Table:
    """One row per task, variant and seed: documents that this checkpoint gained and lost, and the test of this difference."""
    rows = []
    for change in compared:
        seeds = [run.seed for run in f.chosen[change.variant].done]
        cell = {"variant": change.variant, "beta": change.beta, "task": change.task, "metric": change.metric}
        for seed, gained, lost, p in zip(seeds, change.gains, change.losses, change.each, strict=True):
            ends = {"gained": gained, "lost": lost, "p": p, "test": change.single_test}
            rows.append(cell | {"seed": seed} | ends | {"documents": change.delta.n_prompts})
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
        "where scores are graded. Its only source of chance is the documents, so it holds for one training; for the method see the "
        "paired deltas above, which count seeds too."
    )
    return Table(
        "benchmark_documents", "Documents gained and lost, by seed", pd.DataFrame(rows, dtype=object), columns, note
    )


def heat_map(f: Findings, compared: list[Change]) -> Figure:
    """Variants by tasks, coloured and printed; the tasks that moved most where there are too many."""
    moved: dict[tuple[str, str], float] = {}
    for change in compared:
        key = (change.task, change.metric)
        moved[key] = max(moved.get(key, 0.0), abs(change.delta.value))
    shown = sorted(moved, key=lambda key: -moved[key])[:_MOST]
    tasks = [key for key in moved if key in shown]
    variants = list(dict.fromkeys(change.variant for change in compared))
    reach = max(max(moved.values()), 0.01)
    figure, (axis, *_) = canvas(1, 1, 8.2, 1.6 + 0.34 * len(variants))
    for change in compared:
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


def warnings(compared: list[Change]) -> list[str]:
    """What makes a task's numbers say little."""
    tied = {change.task: max(change.tied, change.reference_tied) for change in compared}
    many = {task: share for task, share in tied.items() if share > MANY_TIED}
    if not many:
        return []
    worst = sorted(many.items(), key=lambda item: -item[1])[:4]
    named = ", ".join(f"{task} ({100 * share:.0f} %)" for task, share in worst)
    more = f" and {len(many) - 4} more" if len(many) > 4 else ""
    return [
        f"Options look alike to the model on many documents of {named}{more}: its tokenizer does not distinguish them, and lm-eval then "
        "counts the first option as its answer, right or wrong. These accuracies mean little."
    ]
