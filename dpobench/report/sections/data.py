"""The counts made while the data were read: noise in the labels, length, rows left out, overlap."""

from collections.abc import Mapping

import pandas as pd

from dpobench.analysis.findings import Findings
from dpobench.artifacts.records import Cell
from dpobench.report.table import Column, Row, Table

# Kinds of problems that the reading of data counts, in the order of the table, and their names in it.
PHRASES = {
    "contradicted pair": "Contradictory labels: the reverse is there, too",
    "duplicated pair": "Duplicates of an earlier row",
    "identical answers": "Chosen and rejected identical",
    "score tie": "Ties: both answers have the same score",
    "negative score margin": "Labels against the data's own scores",
    "empty answer": "An answer is empty",
    "empty prompt": "The prompt is empty",
    "few distinct rows": "Rows that repeat others: more than half",
}
_DONE = {"drop": "left out", "warn": "kept"}
# Keys of the notes on data whose rows are written above.
_WRITTEN = ("train", "heldout", "tokens", "heldout_tokens", "overlap", "prompts_overlap", "prompts")


def data_counts(f: Findings) -> Table:
    """The table of these counts."""
    note = f.results.plan.data
    sides = [(_read(note, "train"), _read(note, "tokens")), (_read(note, "heldout"), _read(note, "heldout_tokens"))]
    rows: list[Row] = []

    def add(what: str, values: list[str]) -> None:
        if any(values):
            rows.append({"what": what, "training": values[0], "heldout": values[1]})

    add("Comparisons read", [_number(read.get("read")) for read, _ in sides])
    add("Comparisons used", [_number(tokens.get("kept")) for _, tokens in sides])
    add("Different prompts", [_number(read.get("prompts")) for read, _ in sides])
    problems = [_problems(read) for read, _ in sides]
    for kind in dict.fromkeys([*PHRASES, *problems[0], *problems[1]]):
        if kind in problems[0] or kind in problems[1]:
            add(PHRASES.get(kind, kind.capitalize()), [_share(side, kind, read) for side, (read, _) in zip(problems, sides, strict=True)])  # fmt: skip  # noqa: E501
    add("The longer answer is the chosen one", [_longer(read) for read, _ in sides])
    for answer in ("chosen", "rejected"):
        add(
            f"Tokens of the {answer} answer: median (90 %)",
            [_tokens(tokens, answer) for _, tokens in sides],
        )
    add("Answers cut at the limit of tokens", [_number(tokens.get("cut_answers")) for _, tokens in sides])
    for reason in dict.fromkeys(reason for _, tokens in sides for reason in _read(tokens, "dropped")):
        add(f"Left out: {reason}", [_number(_read(tokens, "dropped").get(reason)) for _, tokens in sides])
    add("Left out: their prompt is a training prompt", ["", _number(note.get("overlap"))])
    add("Prompts left out for the same reason", ["", _number(note.get("prompts_overlap"))])
    for side, count in _read(note, "prompts").items():
        add(f"Prompts to answer, {side}", ["", _number(count)])
    for name, value in _flat({key: value for key, value in note.items() if key not in _WRITTEN}, ""):
        rows.append({"what": name, "training": value, "heldout": ""})
    columns = [
        Column("Counted while reading the data", "what"),
        Column("Training", "training"),
        Column("Held-out", "heldout"),
    ]
    title, frame = "Data: label noise, contradictions, rows left out", pd.DataFrame(rows, dtype=object)
    noted = (
        "Shares are of the rows read. A label against the data's own scores: the rejected answer scores higher than the chosen one. "
        "Length: 95 % interval; equal lengths are left out. An answer that was cut has no end token: no policy learns to stop there."
    )
    if not any({"contradicted pair", "duplicated pair"} & set(side) for side in problems):
        noted += " No pair is there twice, and none with flipped labels."
    return Table("data", title, frame, columns, noted if sides[0][0] else "")


def _read(tree: Mapping[str, object], key: str) -> Mapping[str, object]:
    branch = tree.get(key)
    return branch if isinstance(branch, Mapping) else {}


def _number(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else ""


def _problems(read: Mapping[str, object]) -> dict[str, tuple[int, str]]:
    """Rows and what was done with them, of each kind of problem; written as "60 rows, action: warn"."""
    problems = {}
    for kind, line in _read(read, "problems").items():
        count, _, action = str(line).partition(" rows, action: ")
        if count.replace(",", "").isdigit():
            problems[str(kind)] = int(count.replace(",", "")), action
    return problems


def _share(problems: Mapping[str, tuple[int, str]], kind: str, read: Mapping[str, object]) -> str:
    if not read:
        return ""
    count, action = problems.get(kind, (0, ""))
    rows = read.get("read")
    share = f" ({count / rows:.1%})" if count and isinstance(rows, int) and rows else ""
    return f"{count:,}{share}{f', {_DONE.get(action, action)}' if action else ''}"


def _longer(read: Mapping[str, object]) -> str:
    bias = _read(read, "length")
    if not bias:
        return ""
    return f"{bias['longer_wins']:.1%} [{bias['low']:.1%}, {bias['high']:.1%}] of {bias['n']:,}"


def _tokens(tokens: Mapping[str, object], answer: str) -> str:
    counts = _read(_read(tokens, "tokens"), answer)
    return f"{counts['median']:g} ({counts['p90']:g})" if {"median", "p90"} <= set(counts) else ""


def _flat(tree: object, prefix: str) -> list[tuple[str, Cell]]:
    if not isinstance(tree, Mapping):
        plain = tree if isinstance(tree, (int, float, str)) and not isinstance(tree, bool) else str(tree)
        return [(prefix.replace("_", " "), plain)]
    return [leaf for key, value in tree.items() for leaf in _flat(value, f"{prefix}, {key}" if prefix else str(key))]
