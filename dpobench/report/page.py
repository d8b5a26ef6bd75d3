"""The page: what both templates are filled with, HTML and Markdown."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
import pandas as pd
from markupsafe import Markup

from dpobench.analysis import results as files
from dpobench.analysis.findings import TEST, Findings
from dpobench.analysis.results import REFERENCE
from dpobench.data.prompts import split_of
from dpobench.report import layout, text, words
from dpobench.report.section import Section
from dpobench.report.table import Table

SHOWN_PROMPTS, SHOWN_CHARACTERS = 6, 1500


@dataclass(frozen=True)
class Answer:
    """An answer of one checkpoint as the page shows it.

    Args:
        variant: its variant, or the reference.
        detail: beta and seed.
        text: of the answer, cut where it is long.
        ended: whether it ended before the limit of tokens.
        score: the verdict against the reference in a word, or a number; empty where there is none.
    """

    variant: str
    detail: str
    text: str
    ended: bool
    score: str


@dataclass(frozen=True)
class ShownPrompt:
    """A prompt with the answers of all selected cells: messages with `role` and `content`, and an answer each."""

    messages: Sequence[Mapping[str, str]]
    answers: Sequence[Answer]


def context(
    f: Findings, tables: Mapping[str, Table], figures: Mapping[str, tuple[str, str]], sections: Sequence[Section] = ()
) -> dict[str, object]:
    """What both templates are filled with.

    Args:
        f: the findings.
        tables: by name.
        figures: caption and SVG by name.
        sections: those that have anything to show.
    """
    return {
        "name": f.results.experiment.name or "comparison of preference losses",
        "verdict": words.verdict(f),
        "tables": tables,
        "figures": figures,
        "chapters": layout.chapters(tables, figures, sections),
        "costs": [layout.Part("table", name) for name in ("compute", "trials") if len(tables[name].frame)],
        "answers": side_by_side(f),
        "glossary": words.glossary(f),
        "provenance": words.provenance(f),
        "runs": [_run_line(run) for run in f.results.runs],
        "variants": ", ".join(f.variants),
    }


def render(template: str, context: Mapping[str, object]) -> str:
    """Fill one of the templates of this room."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=template.endswith(".html.j2"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"visible": text.visible, "md": text.markdown, "fenced": text.fenced, "drawn": Markup}
    return environment.get_template(template).render(**context)


def _run_line(run: files.RunResult) -> dict[str, object]:
    return {
        "id": run.id,
        "variant": run.variant,
        "beta": "–" if run.record.beta is None else run.record.beta,
        "seed": run.seed,
        "status": run.status,
        "reason": run.record.reason or "",
        "folder": f"runs/{run.id}",
    }


def side_by_side(f: Findings) -> list[ShownPrompt]:
    """Answers to a few test prompts, picked by hash alone: of the reference and of each selected cell's first seed."""
    sources: list[tuple[str, str, str, Path | None]] = [(REFERENCE, "", REFERENCE, f.results.reference)]
    cells = {v: f"β {label}, " if (label := f.label(c)) else "" for v, c in f.chosen.items()}
    sources += [(v, f"{cells[v]}seed {c.done[0].seed}", c.ids[0], c.done[0].folder) for v, c in f.chosen.items()]
    answers = {run: _first_draws(files.samples(folder)) for _, _, run, folder in sources}
    prompts = files.prompts(f.results)
    common = [p for p in prompts if split_of(p) == TEST and all(p in texts for texts in answers.values())]
    common.sort(key=lambda prompt: hashlib.sha256(f"shown:{prompt}".encode()).hexdigest())
    shown = []
    for prompt in common[:SHOWN_PROMPTS]:
        row = []
        for variant, detail, run, _ in sources:
            written, ended = answers[run][prompt]
            row.append(Answer(variant, detail, _cut(written), ended, _score(f, run, prompt)))
        messages = [{"role": str(m.get("role")), "content": _cut(m.get("content"))} for m in prompts[prompt].messages]
        shown.append(ShownPrompt(messages, row))
    return shown


def _first_draws(frame: pd.DataFrame) -> dict[str, tuple[str, bool]]:
    first = frame.sort_values(["prompt", "draw"], kind="stable").drop_duplicates("prompt")
    return {str(p): (str(t), bool(e)) for p, t, e in zip(first["prompt"], first["text"], first["ended"], strict=True)}


def _cut(content: object) -> str:
    whole = str(content)
    return (
        whole
        if len(whole) <= SHOWN_CHARACTERS
        else f"{whole[:SHOWN_CHARACTERS]} … ({len(whole) - SHOWN_CHARACTERS:,} more characters)"
    )


def _score(f: Findings, run: str, prompt: str) -> str:
    if f.headline is None or run == REFERENCE:
        return ""
    table = f.results.table(f.headline, [run], None, TEST)
    if prompt not in table.columns:
        return ""
    value = float(table[prompt].iloc[0])
    return {1.0: "wins", 0.5: "ties", 0.0: "loses"}.get(value, f"{value:.2f}")
