"""The order of the page, stated here and nowhere else: what comes first, and what stands together to answer one question."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from dpobench.report.section import Section
from dpobench.report.table import Table

Kind = Literal["table", "figure", "sentence", "small", "heading"]
_TEXTS: Mapping[str, Kind] = {"sentence": "sentence", "small": "small", "heading": "heading"}


@dataclass(frozen=True)
class Part:
    """One thing in a chapter.

    Args:
        kind: what it is.
        name: of a table or figure; the text of a sentence or a heading.
        summary: stands for it until a reader opens it; empty where it is open.
        first: whether the chapter begins with it: then the chapter's title is its title.
    """

    kind: Kind
    name: str
    summary: str = ""
    first: bool = False


@dataclass(frozen=True)
class Chapter:
    """One heading of the page with all that stands below it.

    Args:
        anchor: its id.
        title: its heading.
        short: its name in the list of chapters.
        parts: what is in it, in order.
    """

    anchor: str
    title: str
    short: str
    parts: Sequence[Part]


_BOARD = (
    "Each variant at the β selected on the selection prompts; all numbers are from the test prompts. Estimates with 95 % intervals. "
    "Bold only where the Holm-adjusted p is below the level, with two seeds or more."
)
# Anchor, title, name in the list of chapters, and parts; "section:" stands for all of a section, "*" for the sections named nowhere else.
_ORDER: tuple[tuple[str, str, str, tuple[str, ...]], ...] = (
    ("board", "Leaderboard", "Leaderboard", ("table:leaderboard", f"small:{_BOARD}", "figure:differences")),
    (
        "front",
        "Gain against distance from the reference",
        "Distance",
        ("figure:frontier", "section:tradeoff", "section:distance"),
    ),
    ("strengths", "The effect of β, and every cell", "Full grid", ("figure:strength", "table:grid")),
    ("sure", "How sure this is", "How sure", ("section:statistics",)),
    ("games", "Tournament, and what trying more brings", "Tournament", ("section:tournament",)),
    ("*", "", "", ()),
    ("trust", "Can the judge be trusted?", "Judge and controls", ("section:judge", "section:controls")),
    ("tasks", "Held-out benchmarks", "Benchmarks", ("table:benchmarks", "section:documents")),
    ("long", "Length", "Length", ("figure:lengths", "table:lengths", "section:length")),
    (
        "held-out",
        "Held-out pairs: likelihood, ranking, calibration",
        "Held-out pairs",
        ("section:pairs", "table:displacement", "figure:calibration", "table:calibration"),
    ),
    (
        "over-optimisation",
        "Over-optimisation, and the form of sampled answers",
        "Over-optimisation",
        ("table:over_optimisation", "section:within", "section:policy-answers"),
    ),
    (
        "training",
        "Training dynamics and numerical trouble",
        "Training",
        ("figure:dynamics", "table:dynamics", "section:numbers"),
    ),
    ("further", "Further metrics", "Further metrics", ("section:further",)),
    ("read", "The data", "Data", ("table:data",)),
)
# Folded until a reader opens it, under this summary; a table under its title.
_FOLDED = {
    "figure:tradeoff": "Figure: the same cells with joint 95 % ellipses",
    "table:tradeoff_cells": "",
    "table:within_cells": "",
    "table:best_of_trials": "",
    "table:designs": "",
    "table:benchmark_documents": "",
    "table:length_quintiles": "",
    "table:further_metrics_grid": "",
}


def in_order(sections: Sequence[Section]) -> list[Section]:
    """The sections as they follow one another on the page; those that no chapter names keep their order."""
    places = [part for *_, parts in _ORDER for part in (parts or ("*",))]
    return sorted(sections, key=lambda s: places.index(f"section:{s.name}" if f"section:{s.name}" in places else "*"))


def chapters(tables: Mapping[str, Table], figures: Collection[str], sections: Sequence[Section]) -> list[Chapter]:
    """The chapters that have anything in them, in order.

    Args:
        tables: by name; those without rows are left out.
        figures: names.
        sections: those that have anything to show.
    """
    named = {part.partition(":")[2] for *_, parts in _ORDER for part in parts if part.startswith("section:")}
    known = {section.name: section for section in sections}
    made = []
    for anchor, title, short, names in _ORDER:
        if anchor == "*":
            others = [section for section in sections if section.name not in named]
            made += [_chapter(s.name, s.title, s.title, _parts_of(s), tables, figures) for s in others]
            continue
        parts: list[str] = []
        for part in names:
            kind, _, name = part.partition(":")
            if kind != "section":
                parts.append(part)
            elif name in known:
                # Sentences in the middle of a chapter need a heading that says what they are about.
                parts += [f"heading:{known[name].title}"] if parts and known[name].sentences else []
                parts += _parts_of(known[name])
        made.append(_chapter(anchor, title, short, parts, tables, figures))
    return [chapter for chapter in made if any(part.kind != "small" for part in chapter.parts)]


def _parts_of(section: Section) -> list[str]:
    """A section's sentences, figures and tables."""
    figures, tables = [f"figure:{name}" for name in section.figures], [f"table:{t.name}" for t in section.tables]
    return [*(f"sentence:{sentence}" for sentence in section.sentences), *figures, *tables]


def _chapter(
    anchor: str, title: str, short: str, names: Sequence[str], tables: Mapping[str, Table], figures: Collection[str]
) -> Chapter:
    parts: list[Part] = []
    for part in names:
        kind, _, name = part.partition(":")
        summary = _FOLDED.get(part, "")
        if kind == "table" and name in tables and len(tables[name].frame):
            summary = tables[name].title if part in _FOLDED else ""
            parts.append(Part("table", name, summary, first=not parts))
        elif kind == "figure" and name in figures:
            parts.append(Part("figure", name, summary))
        elif kind in _TEXTS:
            parts.append(Part(_TEXTS[kind], name))
    if anchor == "tasks" and not parts:
        parts.append(Part("sentence", "No benchmark was run."))
    return Chapter(anchor, title, short, parts)
