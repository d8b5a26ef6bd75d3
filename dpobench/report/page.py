"""The page: everything above laid out once, then written as HTML and as Markdown."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from dpobench.analysis import results as files
from dpobench.analysis.findings import TEST, Findings
from dpobench.analysis.results import REFERENCE
from dpobench.data.prompts import split_of
from dpobench.report import layout, text, words
from dpobench.report.section import Section
from dpobench.report.table import Table

SHOWN_PROMPTS, SHOWN_CHARACTERS = 6, 1500


def context(
    f: Findings, tables: Mapping[str, Table], figures: Mapping[str, tuple[str, str]], sections: Sequence[Section] = ()
) -> dict[str, Any]:
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


def render(template: str, given: Mapping[str, Any]) -> str:
    """Fill one of the templates beside this file."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=template.endswith(".html.j2"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"visible": text.visible, "md": text.markdown, "fenced": text.fenced, "drawn": Markup}
    return environment.get_template(template).render(**given)


def _run_line(run: files.RunResult) -> dict[str, Any]:
    return {
        "id": run.id,
        "variant": run.variant,
        "beta": "–" if run.record.beta is None else run.record.beta,
        "seed": run.seed,
        "status": run.status,
        "reason": run.record.reason or "",
        "folder": f"runs/{run.id}",
    }


def side_by_side(f: Findings) -> list[dict[str, Any]]:
    """Answers to a few test prompts, picked by hash and by nothing else: the reference's and each selected cell's first seed."""
    sources: list[tuple[str, str, str, Path | None]] = [(REFERENCE, "", REFERENCE, f.results.reference)]
    cells = {v: f"β {label}, " if (label := f.label(c)) else "" for v, c in f.chosen.items()}
    sources += [(v, f"{cells[v]}seed {c.done[0].seed}", c.ids[0], c.done[0].folder) for v, c in f.chosen.items()]
    answers = {run: _first_draws(files.samples(folder)) for _, _, run, folder in sources}
    asked = files.prompts(f.results)
    common = [p for p in asked if split_of(p) == TEST and all(p in own for own in answers.values())]
    common.sort(key=lambda prompt: hashlib.sha256(f"shown:{prompt}".encode()).hexdigest())
    shown = []
    for prompt in common[:SHOWN_PROMPTS]:
        row = [
            {
                "variant": variant,
                "detail": detail,
                "text": _cut(answers[run][prompt][0]),
                "ended": answers[run][prompt][1],
                "score": _score(f, run, prompt),
            }
            for variant, detail, run, _ in sources
        ]
        messages = [{"role": str(m.get("role")), "content": _cut(m.get("content"))} for m in asked[prompt].messages]
        shown.append({"messages": messages, "answers": row})
    return shown


def _first_draws(frame: Any) -> dict[str, tuple[str, bool]]:
    first = frame.sort_values(["prompt", "draw"], kind="stable").drop_duplicates("prompt")
    return {str(p): (str(t), bool(e)) for p, t, e in zip(first["prompt"], first["text"], first["ended"], strict=True)}


def _cut(content: Any) -> str:
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
