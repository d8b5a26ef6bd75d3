"""The pages for those who change the code name what is there: rooms, modules, functions, files, targets."""

import importlib
import re
from pathlib import Path

import pytest

from tests.test_architecture import ROOMS

ROOT = Path(__file__).resolve().parents[1]
ARCHITECTURE, GLOSSARY, CONTRIBUTING = (
    (ROOT / name).read_text(encoding="utf-8")
    for name in ("docs/architecture.md", "docs/glossary.md", "CONTRIBUTING.md")
)
# `python -m dpobench` starts the commands; it is no room.
LISTED = [rooms - {"__main__"} for rooms in ROOMS if rooms != {"__main__"}]
NAMED = sorted(
    {
        name
        for name in re.findall(r"(?<![\w./])([a-z_]+(?:\.\w+)+)(?![\w/])", ARCHITECTURE)
        if name.split(".")[0] in set().union(*LISTED) and not name.endswith((".py", ".md", ".html"))
    }
)
FILES = sorted(
    set(re.findall(r"(?<![\w/])(?:[a-z_]+/)+(?:\w+\.(?:py|md|sh))?", ARCHITECTURE + CONTRIBUTING))
    | set(re.findall(r"\]\(([\w-]+\.md)\)", ARCHITECTURE))
)


def test_the_table_lists_every_room_from_the_bottom_up():
    rooms = re.findall(r"^\| `(\w+)` \|", ARCHITECTURE, re.MULTILINE)
    for line in LISTED:
        here, rooms = rooms[: len(line)], rooms[len(line) :]
        assert set(here) == line
    assert rooms == []


def test_enough_names_are_read_from_the_page():
    assert len(NAMED) >= 15
    assert len(FILES) >= 25


@pytest.mark.parametrize("name", NAMED)
def test_a_name_on_the_page_exists(name):
    parts = name.split(".")
    # The longest prefix that is a module; what follows are its attributes.
    for length in range(len(parts), 0, -1):
        if any((ROOT / "dpobench" / "/".join(parts[:length])).with_suffix(end).exists() for end in (".py", "")):
            value = importlib.import_module(".".join(["dpobench", *parts[:length]]))
            for attribute in parts[length:]:
                value = getattr(value, attribute)
            return
    pytest.fail(f"{name} is nowhere in dpobench/")


@pytest.mark.parametrize("file", FILES)
def test_a_file_on_the_page_exists(file):
    places = (ROOT, ROOT / "dpobench", ROOT / "docs")
    # What a run leaves, and what others have.
    if not file.startswith(("runs/", "results/")):
        assert any((place / file).exists() for place in places), file


def test_the_targets_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"(?:^|`)make ([a-z]+)", ARCHITECTURE + CONTRIBUTING, re.MULTILINE))
    assert targets >= {"quick", "check", "test", "slow", "coverage", "witness"}
    assert {target for target in targets if f"\n{target}:" not in makefile} == set()


def rows(section: str) -> list[list[str]]:
    """Cells of the table below a heading of the glossary."""
    text = GLOSSARY[GLOSSARY.index(f"## {section}") :].split("\n## ")[0]
    lines = [line for line in text.splitlines() if line.startswith("| ")][1:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


SECTIONS = ("Models and losses", "Experiments and files", "Scores and statistics")


def test_each_word_has_one_meaning():
    words = [row[0] for section in SECTIONS for row in rows(section)]
    assert len(words) > 70
    assert [word for word in words if words.count(word) > 1] == []


@pytest.mark.parametrize(
    "page", ["docs/architecture.md", "docs/glossary.md", "CONTRIBUTING.md", "README.md", "CHANGELOG.md"]
)
def test_the_words_that_are_not_used_are_not_used(page):
    text = (ROOT / page).read_text(encoding="utf-8").split("## Words that are not used")[0]
    banned = [re.sub(r" \(.*\)", "", word) for row in rows("Words that are not used") for word in row[0].split(", ")]
    assert len(banned) >= 16
    # Of some only one sense is meant, which no pattern can tell from the others.
    banned = set(banned) - {"strength", "beside", "found", "entries", "own", "seen"}
    assert {word for word in banned if re.search(rf"(?<!\w){word}(?!\w)", text)} == set()
