"""The page's order: everything stands on it once, what belongs together stands together, and nothing is too wide."""

import html.parser
import re

import pandas as pd
import pytest

from dpobench.report import layout
from dpobench.report.section import Section
from dpobench.report.table import Column, Table


@pytest.fixture
def page(planted_report):
    return planted_report / "report"


def test_every_table_and_every_figure_stands_on_both_pages_once(page):
    html, markdown = (page / "report.html").read_text(), (page / "report.md").read_text()
    figures = sorted(file.stem for file in (page / "figures").glob("*.svg"))
    assert len(figures) > 8
    for name in figures:
        assert html.count(f'aria-labelledby="{name}-caption"') == 1, name
        assert markdown.count(f"![{name}]") == 1, name
    filled = [file for file in (page / "tables").glob("*.csv") if len(pd.read_csv(file))]
    # And the list of runs.
    assert html.count("<table") == len(filled) + 1
    assert len(re.findall(r"^\| --- ", markdown, flags=re.M)) == len(filled)


class Outline(html.parser.HTMLParser):
    """Headings of the second rank, and ids below each."""

    def __init__(self, text):
        super().__init__()
        self.headings = {}
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        name = dict(attrs).get("id")
        if tag == "h2":
            self.headings[name] = []
        elif name and not name.endswith("caption") and tag in ("h3", "details"):
            self.headings[list(self.headings)[-1]].append(name)


def test_what_answers_one_question_stands_in_one_section(page):
    outline = Outline((page / "report.html").read_text()).headings
    assert list(outline)[:4] == ["board", "front", "strengths", "sure"]
    assert list(outline)[-4:] == ["answers", "cost", "meaning", "origin"]
    assert "texture" in outline["over-optimisation"]
    assert outline["tasks"] == ["benchmark_documents"]
    assert {"displacement"} <= set(outline["held-out"])
    assert {"lengths", "length_controlled", "length_quintiles"} <= set(outline["long"])


def test_both_pages_have_the_same_sections(page):
    html, markdown = (page / "report.html").read_text(), (page / "report.md").read_text()
    titles = re.findall(r'<h2 id="[^"]*">(.*?)</h2>', html)
    assert re.findall(r"^## (.*)$", markdown, flags=re.M) == titles


def table(name, rows=1, columns=3):
    row = {f"c{place}": 0.5 for place in range(columns)} | {f"c{place}_low": 0.25 for place in range(columns)}
    row |= {f"c{place}_high": 0.75 for place in range(columns)}
    shown = [Column("A number", f"c{place}", 2, interval=True) for place in range(columns)]
    return Table(name, f"Title of {name}", pd.DataFrame([row] * rows, dtype=object), shown)


def test_a_section_that_no_chapter_names_has_a_chapter():
    sections = [Section("news", "News", [table("fresh")], ["Said."], {})]
    chapters = {section.anchor: section for section in layout.chapters({"fresh": table("fresh")}, [], sections)}
    assert [part.kind for part in chapters["news"].parts] == ["sentence", "table"]
    assert chapters["news"].short == "News"


def test_a_sections_sentences_in_the_middle_of_a_chapter_have_a_heading_and_at_its_start_none():
    sections = [Section("judge", "The judge", [], ["First."]), Section("controls", "Controls", [], ["Second."])]
    (chapter,) = [section for section in layout.chapters({}, [], sections) if section.anchor == "trust"]
    assert [(part.kind, part.name) for part in chapter.parts] == [
        ("sentence", "First."),
        ("heading", "Controls"),
        ("sentence", "Second."),
    ]


def test_an_empty_chapter_is_left_out_and_missing_benchmarks_are_reported():
    chapters = {section.anchor: section for section in layout.chapters({"grid": table("grid", rows=0)}, [], [])}
    assert list(chapters) == ["tasks"]
    assert chapters["tasks"].parts[0].name == "No benchmark was run."


def test_in_a_wide_table_intervals_stand_below_their_numbers(page):
    assert not table("narrow").is_wide
    assert table("wide", columns=10).is_wide
    cell = table("narrow").cells[0][0]
    assert (cell.text, cell.value, cell.ends) == ("0.50 [0.25, 0.75]", "0.50", "[0.25, 0.75]")
    board = (page / "report.html").read_text().partition('id="board"')[2].partition("</table>")[0]
    assert 'class="wide"' in board
    assert '<span class="ends">[' in board
