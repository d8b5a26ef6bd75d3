"""The order of the page: what a reader is told first, and what stands together because it answers one question."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from dpobench.report.section import Topic
from dpobench.report.table import Table

Kind = Literal["table", "figure", "sentence", "small", "heading"]
_WORDS: Mapping[str, Kind] = {"sentence": "sentence", "small": "small", "heading": "heading"}


@dataclass(frozen=True)
class Part:
    """One thing in a section.

    Args:
        kind: what it is.
        name: of a table or figure; the words of a sentence or a heading.
        summary: what stands for it until a reader opens it; empty where it is open.
        first: whether the section begins with it: then the section's title is its own.
    """

    kind: Kind
    name: str
    summary: str = ""
    first: bool = False


@dataclass(frozen=True)
class Section:
    """A section of the page.

    Args:
        anchor: its id.
        title: its heading.
        short: its name in the list of sections.
        parts: what is in it, in order.
    """

    anchor: str
    title: str
    short: str
    parts: Sequence[Part]


_BOARD = (
    "Each variant at the strength selected on the selection prompts; all numbers are from the test prompts. Estimates with 95 % intervals. "
    "Bold only where the Holm-adjusted p is below the level and there are two seeds or more."
)
# Anchor, title, name in the list of sections, and parts; "topic:" stands for all of a topic, "*" for the topics named nowhere else.
_ORDER: tuple[tuple[str, str, str, tuple[str, ...]], ...] = (
    ("board", "Leaderboard", "Leaderboard", ("table:leaderboard", f"small:{_BOARD}", "figure:differences")),
    ("front", "What is gained at which distance", "Distance", ("figure:frontier", "topic:tradeoff", "topic:distance")),
    ("strengths", "The effect of β, and every cell", "Full grid", ("figure:strength", "table:grid")),
    ("sure", "How sure this is", "How sure", ("topic:statistics",)),
    ("games", "Tournament, and what trying more brings", "Tournament", ("topic:tournament",)),
    ("*", "", "", ()),
    ("trust", "Can the judge be trusted?", "Judge and controls", ("topic:judge", "topic:controls")),
    ("tasks", "Held-out benchmarks", "Benchmarks", ("table:benchmarks", "topic:documents")),
    ("long", "Length", "Length", ("figure:lengths", "table:lengths", "topic:length")),
    (
        "held-out",
        "Held-out pairs: likelihood, ranking, calibration",
        "Held-out pairs",
        ("topic:pairs", "table:displacement", "figure:calibration", "table:calibration"),
    ),
    (
        "own",
        "Over-optimisation, and the form of own answers",
        "Over-optimisation",
        ("table:over_optimisation", "topic:within", "topic:own-answers"),
    ),
    (
        "training",
        "Training dynamics and numerical trouble",
        "Training",
        ("figure:dynamics", "table:dynamics", "topic:numbers"),
    ),
    ("read", "The data", "Data", ("table:data",)),
)
# What most readers need not see, and what stands in its place; a table has its title there.
_FOLDED = {
    "figure:tradeoff": "Figure: the same cells with joint 95 % ellipses",
    "table:tradeoff_cells": "",
    "table:within_cells": "",
    "table:best_of_trials": "",
    "table:designs": "",
    "table:benchmark_documents": "",
    "table:length_quintiles": "",
}


def sections(tables: Mapping[str, Table], figures: Collection[str], topics: Sequence[Topic]) -> list[Section]:
    """The sections that have anything in them, in order.

    Args:
        tables: by name; those without rows are left out.
        figures: names.
        topics: those that have anything to say.
    """
    named = {part.partition(":")[2] for *_, parts in _ORDER for part in parts if part.startswith("topic:")}
    known = {topic.name: topic for topic in topics}
    found = []
    for anchor, title, short, asked in _ORDER:
        if anchor == "*":
            others = [topic for topic in topics if topic.name not in named]
            found += [_section(t.name, t.title, t.title, [*_of_topic(t)], tables, figures) for t in others]
            continue
        parts: list[str] = []
        for one in asked:
            kind, _, name = one.partition(":")
            if kind != "topic":
                parts.append(one)
            elif name in known:
                # Sentences in the middle of a section need to say what they are about.
                parts += [f"heading:{known[name].title}"] if parts and known[name].said else []
                parts += _of_topic(known[name])
        found.append(_section(anchor, title, short, parts, tables, figures))
    return [section for section in found if any(part.kind != "small" for part in section.parts)]


def _of_topic(topic: Topic) -> list[str]:
    """A topic's sentences, figures and tables."""
    figures, tables = [f"figure:{name}" for name in topic.figures], [f"table:{table.name}" for table in topic.tables]
    return [*(f"sentence:{said}" for said in topic.said), *figures, *tables]


def _section(
    anchor: str, title: str, short: str, asked: Sequence[str], tables: Mapping[str, Table], figures: Collection[str]
) -> Section:
    parts: list[Part] = []
    for one in asked:
        kind, _, name = one.partition(":")
        summary = _FOLDED.get(one, "")
        if kind == "table" and name in tables and len(tables[name].frame):
            summary = tables[name].title if one in _FOLDED else ""
            parts.append(Part("table", name, summary, first=not parts))
        elif kind == "figure" and name in figures:
            parts.append(Part("figure", name, summary))
        elif kind in _WORDS:
            parts.append(Part(_WORDS[kind], name))
    if anchor == "tasks" and not parts:
        parts.append(Part("sentence", "No benchmark was run."))
    return Section(anchor, title, short, parts)
