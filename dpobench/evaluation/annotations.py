"""Verdicts that others gave: people, or a judge that ran elsewhere. Read from a file, looked up by what was compared.

Four layouts are read: that of dpobench (CSV, JSON or a JSON object a line), AlpacaEval's `annotations.json`, Arena-Hard's
judgements, and PandaLM's test set.
"""

import csv
import gzip
import io
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TypeAlias, TypedDict, cast

from dpobench.artifacts.files import file_hash
from dpobench.data.prompts import Prompt
from dpobench.data.rows import Message, prompt_id
from dpobench.errors import BadRow, UserError

Row: TypeAlias = Mapping[str, object]
"""A row of a file, columns unchecked."""


class _Game(TypedDict, total=False):
    """A game of Arena-Hard: the judge's score, and its request in one of two fields."""

    score: str | None
    user_prompt: str
    prompt: list[Message]


_VERDICTS = {"first": 1.0, "tie": 0.5, "second": 0.0}
_EXPECTED = (
    "prompt (its text) or prompt_id, first, second, and p_first (0 to 1) or verdict (first, second, tie), or a, b, order, and "
    "p_a or verdict (a, b, tie); AlpacaEval's annotations.json, Arena-Hard's judgements and PandaLM's test set are read as they are"
)
# How Arena-Hard writes a comparison for its judge.
_ARENA = re.compile(
    r"<\|User Prompt\|>\n(.*)\n\n<\|The Start of Assistant A's Answer\|>\n(.*)\n<\|The End of Assistant A's Answer\|>\s+"
    r"<\|The Start of Assistant B's Answer\|>\n(.*)\n<\|The End of Assistant B's Answer\|>",
    re.DOTALL,
)


@dataclass(frozen=True)
class Annotation:
    """One verdict.

    Args:
        prompt: id of the prompt, or its text.
        first: the answer shown first.
        second: the answer shown second.
        p_first: 1 for the first, 0 for the second, 0.5 for a tie, or a probability between.
    """

    prompt: str
    first: str
    second: str
    p_first: float


@dataclass(frozen=True)
class Annotations:
    """All verdicts of a file; several on one comparison are averaged.

    Args:
        file: where they were read.
        rows: the verdicts, in the order of the file.
    """

    file: Path
    rows: tuple[Annotation, ...]

    @cached_property
    def _by_comparison(self) -> dict[tuple[str, str, str], list[float]]:
        verdicts: dict[tuple[str, str, str], list[float]] = {}
        for row in self.rows:
            verdicts.setdefault(_key(row.prompt, row.first, row.second), []).append(row.p_first)
        return verdicts

    def find(self, prompt: Prompt, first: str, second: str) -> float | None:
        """The verdict on a comparison as shown.

        Returns: `p_first`, the mean of several; where only the other order was judged, that one flipped; None where neither was.
        """
        for name in (prompt.id, prompt.text):
            if verdicts := self._by_comparison.get(_key(name, first, second)):
                return sum(verdicts) / len(verdicts)
        for name in (prompt.id, prompt.text):
            if verdicts := self._by_comparison.get(_key(name, second, first)):
                return 1 - sum(verdicts) / len(verdicts)
        return None

    def in_order(self, prompt: Prompt, first: str, second: str) -> bool:
        """Whether the comparison was judged in this very order, and not the other one alone."""
        return any(_key(name, first, second) in self._by_comparison for name in (prompt.id, prompt.text))

    def comparisons(self, prompts: Mapping[str, Prompt]) -> list[tuple[Prompt, str, str, float]]:
        """Each comparison once, with the mean verdict on it, whichever answer was shown first.

        Args:
            prompts: held-out prompts by id. A row that names its prompt by text needs none of them.

        Returns: prompt, first, second and `p_first`, in the order of the file, the answers as the first row on them names them; rows
            whose prompt id is not among `prompts` are left out.
        """
        texts = {prompt.text.strip(): prompt for prompt in prompts.values()}
        merged: dict[tuple[str, str, str], list[float]] = {}
        compared: dict[str, Prompt] = {}
        for (name, first, second), verdicts in self._by_comparison.items():
            prompt = prompts.get(name) or texts.get(name)
            if prompt is None and re.fullmatch(r"[0-9a-f]{12,64}", name) is None:
                messages = ({"role": "user", "content": name},)
                prompt = Prompt(prompt_id(messages), messages)
            if prompt is None:
                continue
            compared[prompt.id] = prompt
            if (prompt.id, second, first) in merged:
                merged[prompt.id, second, first] += [1 - p for p in verdicts]
            else:
                merged.setdefault((prompt.id, first, second), []).extend(verdicts)
        return [(compared[name], a, b, sum(verdicts) / len(verdicts)) for (name, a, b), verdicts in merged.items()]


def _key(prompt: str, first: str, second: str) -> tuple[str, str, str]:
    # Files lose the white space at the ends; nothing else may differ.
    return prompt.strip(), first.strip(), second.strip()


def read(file: str) -> Annotations:
    """Read a file of verdicts, plain or compressed by gzip; read once while its content stays.

    Args:
        file: `.csv`, `.jsonl` or `.json`, each also with `.gz`, in one of the four layouts.

    Raises:
        UserError: there is no such file, or a row holds no verdict in any known layout; row and column are named.
    """
    path = Path(file).expanduser()
    if not file or not path.is_file():
        raise UserError(f"verdicts {file!r}: no such file; name a CSV or JSONL file with {_EXPECTED}")
    return _read(path.resolve(), file_hash(path))


@lru_cache(maxsize=4)
def _read(path: Path, content: str) -> Annotations:
    rows = []
    for number, row in enumerate(_rows(path)):
        rows += list(_annotations(row, str(path), number))
    if not rows:
        raise UserError(f"verdicts {path}: it holds none; expected are rows with {_EXPECTED}")
    return Annotations(path, tuple(rows))


def _rows(path: Path) -> list[object]:
    raw = path.read_bytes()
    name = path.name.removesuffix(".gz")
    try:
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8-sig")
        if name.endswith(".csv"):
            return list(csv.DictReader(io.StringIO(text, newline="")))
        if name.endswith(".json") and text.lstrip().startswith("["):
            return list(json.loads(text))
    except (OSError, EOFError, UnicodeDecodeError, csv.Error, json.JSONDecodeError) as error:
        raise UserError(
            f"verdicts {path}: cannot be read ({error}); a CSV or JSONL file in UTF-8 is expected"
        ) from error
    rows: list[object] = []
    # Not `splitlines`: it also splits at characters that JSON leaves inside a string.
    for number, line in enumerate(text.split("\n")):
        try:
            rows += [json.loads(line)] if line.strip() else []
        except json.JSONDecodeError as error:
            raise UserError(f"verdicts {path} line {number + 1}: {error}; a JSON object a line is expected") from error
    return rows


def _annotations(row: object, where: str, number: int) -> Iterator[Annotation]:
    if not isinstance(row, dict):
        raise BadRow(where, number, "row", f"is a {type(row).__name__}", f"expected is an object with {_EXPECTED}")
    if "games" in row:
        yield from _of_arena_hard(row, where, number)
    elif "output_1" in row and "preference" in row:
        yield from _of_alpaca_eval(row, where, number)
    elif "response1" in row and "annotator1" in row:
        yield _of_pandalm(row, where, number)
    elif "a" in row and "b" in row:
        yield from _of_dpobench(_as_shown(row, where, number), where, number)
    else:
        yield from _of_dpobench(row, where, number)


def _of_dpobench(row: Row, where: str, number: int) -> Iterator[Annotation]:
    """`prompt` or `prompt_id`, `first`, `second`, and `p_first` or `verdict`; nothing where there is no verdict."""
    texts = []
    for column in ("prompt", "first", "second"):
        text = row.get(column) if column != "prompt" else row.get("prompt_id") or row.get("prompt")
        if not isinstance(text, str):
            raise BadRow(where, number, column, f"is {text!r:.40}", f"expected are {_EXPECTED}")
        texts.append(text)
    prompt, first, second = texts
    p_first = row.get("p_first")
    if p_first not in (None, ""):
        yield Annotation(prompt, first, second, _share(p_first, where, number, "p_first"))
        return
    verdict = str(row.get("verdict") or "").strip().lower()
    if verdict in _VERDICTS:
        yield Annotation(prompt, first, second, _VERDICTS[verdict])
    elif verdict not in ("", "unparsable", "error"):
        raise BadRow(
            where, number, "verdict", f"is {verdict!r}", "first, second or tie is expected, or nothing for none"
        )


def _as_shown(row: Row, where: str, number: int) -> Row:
    """A row of `pairwise.compare`, with the texts as `a` and `b`, as it was shown: with `order` 1, b stood first."""
    order = {"0": 0, "0.0": 0, "1": 1, "1.0": 1}.get(str(row.get("order") or 0))
    if order is None:
        raise BadRow(where, number, "order", f"is {row['order']!r:.40}", "0 where a was shown first, or 1, is expected")
    first, second = ("b", "a") if order else ("a", "b")
    p_a, verdict = row.get("p_a"), str(row.get("verdict") or "").strip().lower()
    missing = p_a in (None, "") or p_a != p_a
    p_first = None if missing else abs(order - _share(p_a, where, number, "p_a"))
    verdict = {first: "first", second: "second"}.get(verdict, verdict)
    return {**row, "first": row[first], "second": row[second], "p_first": p_first, "verdict": verdict}


def _share(value: object, where: str, number: int, column: str) -> float:
    try:
        share = float(cast(str, value))
    except (TypeError, ValueError):
        share = math.nan
    if not 0 <= share <= 1:
        raise BadRow(
            where, number, column, f"is {value!r:.40}", "a number from 0 to 1 is expected, or nothing for no verdict"
        )
    return share


def _of_alpaca_eval(row: Row, where: str, number: int) -> Iterator[Annotation]:
    """1 is the first output, 2 the second, between them a probability; 0 and 1.5 are ties, and nothing is no verdict."""
    preference = row["preference"]
    if preference is None or (isinstance(preference, float) and math.isnan(preference)):
        return
    if not isinstance(preference, int | float) or not (preference == 0 or 1 <= preference <= 2):
        raise BadRow(
            where, number, "preference", f"is {preference!r:.40}", "a number from 1 to 2 is expected, or 0 for a tie"
        )
    p_first = 0.5 if preference == 0 else 2.0 - preference
    yield Annotation(_instruction(row), str(row["output_1"]), str(row["output_2"]), p_first)


def _instruction(row: Row) -> str:
    return "\n\n".join(str(row[name]) for name in ("instruction", "input") if row.get(name))


def _of_pandalm(row: Row, where: str, number: int) -> Annotation:
    """The vote of most people: 1 the first answer, 2 the second, 0 neither; neither, too, where no two of them agree."""
    votes = [vote for name, vote in row.items() if re.fullmatch(r"annotator\d+", name)]
    for vote in votes:
        if vote not in (0, 1, 2):
            raise BadRow(where, number, "annotator", f"is {vote!r:.40}", "0 (tie), 1 or 2 is expected")
    most = [vote for vote in (0, 1, 2) if votes.count(vote) == max(map(votes.count, votes))]
    p_first = 0.5 if len(most) > 1 else {0: 0.5, 1: 1.0, 2: 0.0}[most[0]]
    return Annotation(_instruction(row), str(row["response1"]), str(row.get("response2", "")), p_first)


def _of_arena_hard(row: Row, where: str, number: int) -> Iterator[Annotation]:
    """Two games a row, the places exchanged in the second; prompt and answers stand in what the judge was shown."""
    for game in cast(list[_Game | None], row["games"]):
        if not game or not game.get("score"):
            continue
        messages = game.get("prompt")
        shown = game.get("user_prompt") or (messages[-1].get("content") if messages else None)
        parts = _ARENA.search(shown) if isinstance(shown, str) else None
        if parts is None:
            raise BadRow(
                where, number, "games", "do not hold what the judge was shown", "Arena-Hard's own template is expected"
            )
        label = re.fullmatch(r"([AB])(>{1,2}|=|<{1,2})([AB])", str(game["score"]))
        if label is None or label[1] == label[3]:
            raise BadRow(
                where,
                number,
                "games",
                f"hold the score {game['score']!r:.20}",
                "A>>B, A>B, A=B, B>A or B>>A is expected",
            )
        better = label[1] if label[2].startswith(">") else label[3]
        p_first = 0.5 if label[2] == "=" else float(better == "A")
        yield Annotation(parts[1], parts[2], parts[3], p_first)
