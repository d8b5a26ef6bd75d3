"""Six ways to write down a comparison, told apart by what the rows hold, and brought to one.

| layout | columns |
|---|---|
| `strings` | prompt, chosen, rejected: text; the prompt is one user turn (or a transcript that ends in `Assistant:`) |
| `transcript` | chosen, rejected: whole dialogues as text, `Human:` and `Assistant:` after an empty line |
| `messages` | prompt, chosen, rejected: message lists |
| `implicit` | chosen, rejected: message lists with the dialogue inside |
| `prompt-and-messages` | prompt: text; chosen, rejected: message lists with or without the prompt inside; scores |
| `conversations` | conversations: message list; chosen, rejected: one message each; `from`/`value` or `role`/`content` |

A column `gold` may stand beside any of them: a third, best answer as text or as one assistant message, with or without the
prompt before it.

What both sides share is found in whole turns, never in characters: a prefix of characters would eat into the answers.
"""

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dpobench.data.messages import Place, is_transcript, shape
from dpobench.data.rows import Finding, Message, Preference
from dpobench.errors import BadRow, UnknownName, UserError

OnBadRow = Literal["error", "drop"]
Sides = tuple[list[Message], list[Message]]

# Rows looked at to tell the layout: one odd row must not decide for the rest.
_LOOKED_AT = 100
_TEXTS = ("prompt", "chosen", "rejected", "gold", "conversations", "system", "tools")
_FOREIGN = {
    ("completion", "label"): "single answers with a label (unpaired)",
    ("human_ref_A", "human_ref_B"): "the layout of SHP",
    ("answers",): "ranked answers",
    ("completions",): "scored answers",
}


@dataclass(frozen=True)
class Converted:
    """What became of the rows of one source.

    Args:
        rows: those that could be read, in order.
        layout: the layout they had.
        read: how many rows the source has.
        findings: why the others could not be used, and what was odd in those that could.
        columns: numeric columns that were kept.
        ignored: columns that were not.
    """

    rows: list[Preference]
    layout: str
    read: int
    findings: tuple[Finding, ...] = ()
    columns: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()


class _Unusable(Exception):
    """A row that is well formed but is no comparison of two answers to one prompt."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind, self.detail = kind, detail


def convert(
    raw: Sequence[Mapping[str, Any]],
    name: str,
    *,
    layout: str | None = None,
    columns: Mapping[str, str] | None = None,
    on_bad_row: OnBadRow = "error",
) -> Converted:
    """Bring raw rows to `Preference`.

    Args:
        raw: rows as `dpobench.data.files.load` gives them.
        name: of the file or data set, for messages.
        layout: one of `LAYOUTS`; found out by itself if None.
        columns: our name -> the name in the data, for example `{"prompt": "question"}`.
        on_bad_row: whether a malformed row is an error or is left out and counted.

    Raises:
        BadRow: the first malformed row, if `on_bad_row` is "error".
        UserError: a column is missing everywhere, or no layout fits.
    """
    rows = [_renamed(row, columns) for row in raw] if columns and _mapped(raw, name, columns) else raw
    if layout is not None and layout not in LAYOUTS:
        raise UnknownName("layout", layout, LAYOUTS)
    layout = layout or detect(rows, name)
    numeric = _numeric_columns(rows)
    made: list[Preference] = []
    findings: list[Finding] = []
    for number, row in enumerate(rows):
        place = Place(name, number)
        try:
            prompt, chosen, rejected = _comparison(*LAYOUTS[layout](place, row))
            gold = _gold(place, row, layout, prompt)
            numbers = _numbers(place, row, numeric, findings)
            made.append(Preference(prompt, chosen, rejected, numbers, name, number, gold))
        except BadRow as error:
            if on_bad_row == "error":
                raise
            findings.append(Finding("bad row", number, str(error)))
        except _Unusable as reason:
            findings.append(Finding(reason.kind, number, reason.detail))
    known = {*numeric, *_TEXTS}
    ignored = sorted({key for row in rows for key in row} - known)
    return Converted(made, layout, len(rows), tuple(findings), tuple(numeric), tuple(ignored))


def _mapped(raw: Sequence[Mapping[str, Any]], name: str, columns: Mapping[str, str]) -> bool:
    present = {key for row in raw for key in row}
    for ours, theirs in columns.items():
        if theirs not in present:
            raise UnknownName(f"column of {name}", theirs, present, f" It was named for {ours!r}.")
    return True


def _renamed(row: Mapping[str, Any], columns: Mapping[str, str]) -> Mapping[str, Any]:
    taken = {**row}
    moved = {ours: taken.pop(theirs) for ours, theirs in columns.items() if theirs in taken}
    return {**taken, **moved}


def detect(rows: Sequence[Mapping[str, Any]], name: str) -> str:
    """The layout of a data set, from the columns and types of its first rows.

    Raises:
        UserError: a column is missing in all of them, or they are of a layout that is not read.
    """
    first = rows[:_LOOKED_AT]
    present = sorted({key for row in first for key in row})
    for side in ("chosen", "rejected"):
        if side not in present:
            raise _missing(name, side, present)
    answers, prompt = _usual(first, "chosen"), _usual(first, "prompt")
    if "conversations" in present and _usual(first, "conversations") == "messages":
        return "conversations"
    if prompt == "messages":
        return "messages"
    if answers == "messages":
        return "prompt-and-messages" if prompt == "text" else "implicit"
    if prompt is not None:
        return "strings"
    if any(is_transcript(row.get("chosen")) for row in first):
        return "transcript"
    raise _missing(name, "prompt", present)


def _usual(rows: Sequence[Mapping[str, Any]], column: str) -> str | None:
    """The commonest type of a column's cells, or None if no row has it."""
    shapes = [shape(row[column]) for row in rows if column in row]
    full = [s for s in shapes if s in ("text", "messages")]
    return max(sorted(set(full)), key=full.count) if full else (shapes[0] if shapes else None)


def _missing(name: str, column: str, present: Sequence[str]) -> UserError:
    for names, what in _FOREIGN.items():
        if set(names) <= set(present):
            return UserError(f"{name}: {what} cannot be read yet; make rows with prompt, chosen and rejected of it")
    guess = difflib.get_close_matches(column, present, n=1, cutoff=0.5)
    example = guess[0] if guess else "NAME"
    found = ", ".join(present) or "none"
    return UserError(
        f'{name}: no column "{column}" (found: {found}). Name it with --set data.columns.{column}={example}'
    )


def _cell(place: Place, row: Mapping[str, Any], column: str) -> Any:
    if column not in row:
        found = f"is missing (the row has: {', '.join(row) or 'nothing'})"
        raise place.bad(column, found, "add it, or remove the row")
    return row[column]


def _answer(place: Place, column: str, value: Any) -> list[Message]:
    """An answer as turns; plain text is one assistant turn."""
    if isinstance(value, str):
        return [{"role": "assistant", "content": place.text(column, value)}]
    return place.turns(column, value)


def _strings(place: Place, row: Mapping[str, Any]) -> Sides:
    prompt, chosen, rejected = (place.text(c, _cell(place, row, c)) for c in ("prompt", "chosen", "rejected"))
    if _unanswered(prompt):
        start = place.transcript("prompt", prompt.rstrip())[:-1]
        chosen, rejected = chosen.removeprefix(" "), rejected.removeprefix(" ")
    else:
        start = [{"role": "user", "content": prompt}]
    return [*start, {"role": "assistant", "content": chosen}], [*start, {"role": "assistant", "content": rejected}]


def _unanswered(prompt: str) -> bool:
    """Whether a prompt is a transcript that ends where the assistant is to speak."""
    return prompt.rstrip().endswith("\n\nAssistant:") and is_transcript(prompt)


def _transcript(place: Place, row: Mapping[str, Any]) -> Sides:
    chosen, rejected = (place.transcript(c, _cell(place, row, c)) for c in ("chosen", "rejected"))
    return _ordered(place, "chosen", chosen), _ordered(place, "rejected", rejected)


def _messages(place: Place, row: Mapping[str, Any]) -> Sides:
    prompt = place.turns("prompt", _cell(place, row, "prompt"))
    return _after(place, row, prompt)


def _implicit(place: Place, row: Mapping[str, Any]) -> Sides:
    chosen, rejected = (place.turns(c, _cell(place, row, c)) for c in ("chosen", "rejected"))
    return _ordered(place, "chosen", chosen), _ordered(place, "rejected", rejected)


def _prompt_and_messages(place: Place, row: Mapping[str, Any]) -> Sides:
    prompt = place.text("prompt", _cell(place, row, "prompt"))
    sides = [place.turns(c, _cell(place, row, c)) for c in ("chosen", "rejected")]
    # The text is one of the user's turns where the lists hold the dialogue; which one differs between data sets.
    inside = [any(turn["role"] != "assistant" for turn in side) for side in sides]
    if not any(inside):
        return _after(place, row, [{"role": "user", "content": prompt}])
    for side in sides:
        if not any(turn["role"] == "user" and turn["content"].strip() == prompt.strip() for turn in side):
            raise _Unusable("prompts differ", "the column prompt is none of the user's turns in the message lists")
    return _ordered(place, "chosen", sides[0]), _ordered(place, "rejected", sides[1])


def _conversations(place: Place, row: Mapping[str, Any]) -> Sides:
    prompt = place.turns("conversations", _cell(place, row, "conversations"))
    if row.get("tools"):
        raise place.bad("tools", "is not empty", "tool calls are not supported; remove the row")
    if row.get("system"):
        prompt = [{"role": "system", "content": place.text("system", row["system"])}, *prompt]
    return _after(place, row, prompt)


def _after(place: Place, row: Mapping[str, Any], prompt: list[Message]) -> Sides:
    """Both dialogues in full, whether or not the sides repeat the prompt."""
    sides = []
    for column in ("chosen", "rejected"):
        side = _answer(place, column, _cell(place, row, column))
        repeats = len(side) > len(prompt) and side[: len(prompt)] == prompt
        if not repeats and side[0]["role"] != "assistant" and len(side) > 1:
            raise _Unusable("prompts differ", f'the dialogue in "{column}" does not begin with the prompt')
        sides.append(_ordered(place, column, side if repeats else [*prompt, *side]))
    return sides[0], sides[1]


def _ordered(place: Place, column: str, turns: list[Message]) -> list[Message]:
    for number, turn in enumerate(turns):
        if turn["role"] == "system" and number > 0:
            raise place.bad(column, f"has a system turn at place {number}", "a system turn can only come first")
    return turns


def _comparison(chosen: list[Message], rejected: list[Message]) -> tuple[tuple[Message, ...], str, str]:
    """Prompt and answers of two dialogues: the longest common prefix of whole turns, and the one turn that follows it."""
    shared, most = 0, min(len(chosen), len(rejected)) - 1
    while shared < most and chosen[shared] == rejected[shared]:
        shared += 1
    if len(chosen) != shared + 1 or len(rejected) != shared + 1:
        detail = f"after {shared} shared turns {len(chosen) - shared} turns stand against {len(rejected) - shared}"
        raise _Unusable("diverges before the last answer", detail)
    last = (chosen[-1], rejected[-1])
    if any(turn["role"] != "assistant" for turn in last):
        roles = " and ".join(turn["role"] for turn in last)
        raise _Unusable("wrong roles", f'"chosen" and "rejected" end with role {roles}')
    return tuple(chosen[:shared]), last[0]["content"], last[1]["content"]


def _gold(place: Place, row: Mapping[str, Any], layout: str, prompt: tuple[Message, ...]) -> str | None:
    """The third answer, whether or not it repeats the prompt; None where the row has none."""
    value = row.get("gold")
    if value is None:
        return None
    if layout == "transcript" and is_transcript(value):
        turns = place.transcript("gold", value)
    elif shape(value) == "messages":
        turns = place.turns("gold", value)
    else:
        text = place.text("gold", value)
        after_a_mark = layout == "transcript" or (layout == "strings" and _unanswered(row["prompt"]))
        turns = [{"role": "assistant", "content": text.removeprefix(" ") if after_a_mark else text}]
    if tuple(turns[:-1]) not in ((), prompt):
        raise place.bad("gold", "does not begin with the prompt", "give the answer alone, as text or as one message")
    if turns[-1]["role"] != "assistant":
        raise place.bad("gold", f"ends with role {turns[-1]['role']}", "an answer is the assistant's")
    if not turns[-1]["content"].strip():
        raise place.bad("gold", "is empty", "write an answer, put null in its place, or remove the row")
    return turns[-1]["content"]


LAYOUTS: Mapping[str, Callable[[Place, Mapping[str, Any]], Sides]] = {
    "strings": _strings,
    "transcript": _transcript,
    "messages": _messages,
    "implicit": _implicit,
    "prompt-and-messages": _prompt_and_messages,
    "conversations": _conversations,
}


def _numeric_columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Columns that hold nothing but numbers (as text, too: a table without types) and gaps."""
    ruled_out: set[str] = set(_TEXTS)
    found: dict[str, None] = {}
    for row in rows:
        for key, value in row.items():
            if key in ruled_out or value is None or value == "":
                continue
            # Scores are asked for by name: one that is no number is a bad row, not a column to forget.
            if _number(value) is None and not key.startswith("score_"):
                ruled_out.add(key)
            else:
                found[key] = None
    return sorted(key for key in found if key not in ruled_out)


def _number(value: Any) -> float | None:
    if not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except ValueError:
        return None
    except OverflowError:
        return math.inf


def _numbers(place: Place, row: Mapping[str, Any], numeric: Sequence[str], findings: list[Finding]) -> dict[str, float]:
    numbers = {}
    for column in numeric:
        value = row.get(column)
        if value is None or value == "":
            continue
        number = _number(value)
        if number is not None and math.isfinite(number):
            numbers[column] = number
        elif column.startswith("score_"):
            raise place.bad(column, f"is {value!r}", "a finite number is expected; fill it in or remove the row")
        else:
            findings.append(Finding("number not finite", place.row, f'"{column}" is {value!r}'))
    return numbers
