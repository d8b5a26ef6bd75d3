"""Six layouts of comparisons, recognised by what the rows hold, and converted to `Preference`: the border to untyped rows.

| layout | columns |
|---|---|
| `strings` | prompt, chosen, rejected: text; the prompt is one user turn (or a transcript that ends in `Assistant:`) |
| `transcript` | chosen, rejected: whole dialogues as text, `Human:` and `Assistant:` after an empty line |
| `messages` | prompt, chosen, rejected: message lists |
| `implicit` | chosen, rejected: message lists with the dialogue inside |
| `prompt-and-messages` | prompt: text; chosen, rejected: message lists with or without the prompt inside; scores |
| `conversations` | conversations: message list; chosen, rejected: one message each; `from`/`value` or `role`/`content` |

Each may have a column `gold`: a third, best answer as text or as one assistant message, with or without the prompt before it.

The shared prompt is the longest common prefix of whole turns, never of characters: that would cut into the answers.
"""

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from dpobench.data.messages import CellType, Place, cell_type, is_transcript
from dpobench.data.rows import Message, Preference, RawRow, RowProblem
from dpobench.errors import BadRow, UnknownName, UserError

OnBadRow = Literal["error", "drop"]
Sides = tuple[list[Message], list[Message]]

# Rows from which the layout is detected: one odd row must not decide for the rest.
_DETECTED_FROM = 100
_NOT_NUMERIC = ("prompt", "chosen", "rejected", "gold", "conversations", "system", "tools")
_UNSUPPORTED = {
    ("completion", "label"): "single answers with a label (unpaired)",
    ("human_ref_A", "human_ref_B"): "the layout of SHP",
    ("answers",): "ranked answers",
    ("completions",): "scored answers",
}


@dataclass(frozen=True)
class Converted:
    """The rows of one source after conversion.

    Args:
        rows: those that could be read, in order.
        layout: the layout they had.
        rows_read: how many rows the source has.
        problems: why the others could not be used, and what was odd in those that could.
        columns: numeric columns, which the rows hold.
        ignored: columns that nothing reads.
    """

    rows: list[Preference]
    layout: str
    rows_read: int
    problems: tuple[RowProblem, ...] = ()
    columns: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()


class _Unusable(Exception):
    """A row that is well formed but is no comparison of two answers to one prompt."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind, self.detail = kind, detail


def convert(
    raw: Sequence[RawRow],
    name: str,
    *,
    layout: str | None = None,
    columns: Mapping[str, str] | None = None,
    on_bad_row: OnBadRow = "error",
) -> Converted:
    """Convert raw rows to `Preference`.

    Args:
        raw: rows as `dpobench.data.files.load` gives them.
        name: of the file or data set, for messages.
        layout: one of `LAYOUTS`; detected if None.
        columns: our name -> the name in the data, for example `{"prompt": "question"}`.
        on_bad_row: whether a malformed row is an error or is left out and counted.

    Raises:
        BadRow: the first malformed row, if `on_bad_row` is "error".
        UserError: a column is missing everywhere, or no layout fits.

    Example:
        >>> convert([{"prompt": "2 + 2?", "chosen": "4", "rejected": "5", "weight": 2}], "rows").rows[0].columns
        {'weight': 2.0}
    """
    rows = _renamed(raw, name, columns) if columns else raw
    if layout is not None and layout not in LAYOUTS:
        raise UnknownName("layout", layout, LAYOUTS)
    layout = layout or detect(rows, name)
    numeric = _numeric_columns(rows)
    preferences: list[Preference] = []
    problems: list[RowProblem] = []
    for number, row in enumerate(rows):
        place = Place(name, number)
        try:
            prompt, chosen, rejected = _comparison(*LAYOUTS[layout](place, row))
            gold = _gold(place, row, layout, prompt)
            numbers = _numbers(place, row, numeric, problems)
            preferences.append(Preference(prompt, chosen, rejected, numbers, name, number, gold))
        except BadRow as error:
            if on_bad_row == "error":
                raise
            problems.append(RowProblem("bad row", number, str(error)))
        except _Unusable as reason:
            problems.append(RowProblem(reason.kind, number, reason.detail))
    ignored = sorted({key for row in rows for key in row} - {*numeric, *_NOT_NUMERIC})
    return Converted(preferences, layout, len(rows), tuple(problems), tuple(numeric), tuple(ignored))


def _renamed(raw: Sequence[RawRow], name: str, columns: Mapping[str, str]) -> list[RawRow]:
    """The rows with our names of columns in place of the data's."""
    present = {key for row in raw for key in row}
    for ours, theirs in columns.items():
        if theirs not in present:
            raise UnknownName(f"column of {name}", theirs, present, f" It was named for {ours!r}.")
    renamed: list[RawRow] = []
    for row in raw:
        rest = {**row}
        named = {ours: rest.pop(theirs) for ours, theirs in columns.items() if theirs in rest}
        renamed.append({**rest, **named})
    return renamed


def detect(rows: Sequence[RawRow], name: str) -> str:
    """The layout of a data set, from the columns and types of its first 100 rows.

    Args:
        rows: raw rows.
        name: of the file or data set, for messages.

    Raises:
        UserError: a column is missing in all of them, or they are of a layout that is not read.

    Example:
        >>> detect([{"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}], "rows")
        'strings'
    """
    first = rows[:_DETECTED_FROM]
    present = sorted({key for row in first for key in row})
    for side in ("chosen", "rejected"):
        if side not in present:
            raise _missing(name, side, present)
    answers, prompt = _commonest_type(first, "chosen"), _commonest_type(first, "prompt")
    if "conversations" in present and _commonest_type(first, "conversations") == "messages":
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


def _commonest_type(rows: Sequence[RawRow], column: str) -> CellType | None:
    """The commonest type of a column's cells, or None if no row has it."""
    types = [cell_type(row[column]) for row in rows if column in row]
    readable: list[CellType] = [one for one in types if one in ("text", "messages")]
    if readable:
        return max(sorted(set(readable)), key=readable.count)
    return types[0] if types else None


def _missing(name: str, column: str, present: Sequence[str]) -> UserError:
    for names, what in _UNSUPPORTED.items():
        if set(names) <= set(present):
            return UserError(f"{name}: {what} cannot be read yet; make rows with prompt, chosen and rejected of it")
    guess = difflib.get_close_matches(column, present, n=1, cutoff=0.5)
    example = guess[0] if guess else "NAME"
    return UserError(
        f'{name}: no column "{column}" (its columns: {", ".join(present) or "none"}). Name it with --set data.columns.{column}={example}'
    )


def _answer(place: Place, column: str, value: object) -> list[Message]:
    """An answer as turns; plain text is one assistant turn."""
    if isinstance(value, str):
        return [{"role": "assistant", "content": place.text(column, value)}]
    return place.turns(column, value)


def _strings(place: Place, row: RawRow) -> Sides:
    prompt, chosen, rejected = (place.text(c, place.cell(row, c)) for c in ("prompt", "chosen", "rejected"))
    if _is_open_transcript(prompt):
        start = place.transcript("prompt", prompt.rstrip())[:-1]
        chosen, rejected = chosen.removeprefix(" "), rejected.removeprefix(" ")
    else:
        start = [{"role": "user", "content": prompt}]
    return [*start, {"role": "assistant", "content": chosen}], [*start, {"role": "assistant", "content": rejected}]


def _is_open_transcript(prompt: object) -> bool:
    """Whether a prompt is a transcript that ends where the assistant is to speak."""
    return isinstance(prompt, str) and prompt.rstrip().endswith("\n\nAssistant:") and is_transcript(prompt)


def _transcript(place: Place, row: RawRow) -> Sides:
    chosen, rejected = (place.transcript(c, place.cell(row, c)) for c in ("chosen", "rejected"))
    return _ordered(place, "chosen", chosen), _ordered(place, "rejected", rejected)


def _messages(place: Place, row: RawRow) -> Sides:
    prompt = place.turns("prompt", place.cell(row, "prompt"))
    return _after(place, row, prompt)


def _implicit(place: Place, row: RawRow) -> Sides:
    chosen, rejected = (place.turns(c, place.cell(row, c)) for c in ("chosen", "rejected"))
    return _ordered(place, "chosen", chosen), _ordered(place, "rejected", rejected)


def _prompt_and_messages(place: Place, row: RawRow) -> Sides:
    prompt = place.text("prompt", place.cell(row, "prompt"))
    sides = [place.turns(c, place.cell(row, c)) for c in ("chosen", "rejected")]
    # The text is one of the user's turns where the lists hold the dialogue; which one differs between data sets.
    inside = [any(turn["role"] != "assistant" for turn in side) for side in sides]
    if not any(inside):
        return _after(place, row, [{"role": "user", "content": prompt}])
    for side in sides:
        if not any(turn["role"] == "user" and turn["content"].strip() == prompt.strip() for turn in side):
            raise _Unusable("prompts differ", "the column prompt is none of the user's turns in the message lists")
    return _ordered(place, "chosen", sides[0]), _ordered(place, "rejected", sides[1])


def _conversations(place: Place, row: RawRow) -> Sides:
    prompt = place.turns("conversations", place.cell(row, "conversations"))
    if row.get("tools"):
        raise place.bad("tools", "is not empty", "tool calls are not supported; remove the row")
    if row.get("system"):
        prompt = [{"role": "system", "content": place.text("system", row["system"])}, *prompt]
    return _after(place, row, prompt)


def _after(place: Place, row: RawRow, prompt: list[Message]) -> Sides:
    """Both dialogues in full, whether or not the sides repeat the prompt."""
    sides = []
    for column in ("chosen", "rejected"):
        side = _answer(place, column, place.cell(row, column))
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
        detail = f"after {shared} shared turns, chosen has {len(chosen) - shared} and rejected {len(rejected) - shared} turns"
        raise _Unusable("diverges before the last answer", detail)
    last = (chosen[-1], rejected[-1])
    if any(turn["role"] != "assistant" for turn in last):
        roles = " and ".join(turn["role"] for turn in last)
        raise _Unusable("wrong roles", f'"chosen" and "rejected" end with role {roles}')
    return tuple(chosen[:shared]), last[0]["content"], last[1]["content"]


def _gold(place: Place, row: RawRow, layout: str, prompt: tuple[Message, ...]) -> str | None:
    """The third answer, whether or not it repeats the prompt; None where the row has none."""
    value = row.get("gold")
    if value is None:
        return None
    if layout == "transcript" and is_transcript(value):
        turns = place.transcript("gold", value)
    elif cell_type(value) == "messages":
        turns = place.turns("gold", value)
    else:
        text = place.text("gold", value)
        follows_a_mark = layout == "transcript" or (layout == "strings" and _is_open_transcript(row["prompt"]))
        turns = [{"role": "assistant", "content": text.removeprefix(" ") if follows_a_mark else text}]
    if tuple(turns[:-1]) not in ((), prompt):
        raise place.bad("gold", "does not begin with the prompt", "give the answer alone, as text or as one message")
    if turns[-1]["role"] != "assistant":
        raise place.bad("gold", f"ends with role {turns[-1]['role']}", "an answer is the assistant's")
    if not turns[-1]["content"].strip():
        raise place.bad("gold", "is empty", "write an answer, put null in its place, or remove the row")
    return turns[-1]["content"]


# Name of a layout -> the function that reads both dialogues, the prompt included, from a row of it.
LAYOUTS: Mapping[str, Callable[[Place, RawRow], Sides]] = {
    "strings": _strings,
    "transcript": _transcript,
    "messages": _messages,
    "implicit": _implicit,
    "prompt-and-messages": _prompt_and_messages,
    "conversations": _conversations,
}


def _numeric_columns(rows: Sequence[RawRow]) -> list[str]:
    """Columns that hold nothing but gaps and numbers; CSV holds these as text."""
    ruled_out: set[str] = set(_NOT_NUMERIC)
    numeric: set[str] = set()
    for row in rows:
        for key, value in row.items():
            if key in ruled_out or value is None or value == "":
                continue
            # A score column is known by its name: a cell that is no number makes a bad row, not a column to ignore.
            if _number(value) is None and not key.startswith("score_"):
                ruled_out.add(key)
            else:
                numeric.add(key)
    return sorted(numeric - ruled_out)


def _number(value: object) -> float | None:
    if not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except ValueError:
        return None
    except OverflowError:
        return math.inf


def _numbers(place: Place, row: RawRow, numeric: Sequence[str], problems: list[RowProblem]) -> dict[str, float]:
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
            problems.append(RowProblem("number not finite", place.row, f'"{column}" is {value!r}'))
    return numbers
