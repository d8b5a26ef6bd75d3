"""Turns of a dialogue, from text, message lists, from/value pairs or marked-up transcripts."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from dpobench.data.rows import Message, RawRow, brief
from dpobench.errors import BadRow

ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
}
_TURN = re.compile(r"\n\n(Human|Assistant):")
_TOOLS = ("tool_calls", "function_call")


@dataclass(frozen=True)
class Place:
    """Where a value stands, so that every error can name it, with checks of what the value is.

    Args:
        source: file or data set.
        row: 0-based row number.
    """

    source: str
    row: int

    def bad(self, column: str, fault: str, remedy: str) -> BadRow:
        """The error of a value that cannot be used: what is wrong with it, and what to do."""
        return BadRow(self.source, self.row, column, fault, remedy)

    def cell(self, row: RawRow, column: str) -> object:
        """The value of a column, whatever it is.

        Raises:
            BadRow: the row has no such column.
        """
        if column not in row:
            fault = f"is missing (the row has: {', '.join(row) or 'nothing'})"
            raise self.bad(column, fault, "add it, or remove the row")
        return row[column]

    def text(self, column: str, value: object) -> str:
        """The value, which must be valid text.

        Raises:
            BadRow: null, a number, NaN, a list, an object, or text with a lone surrogate.
        """
        if not isinstance(value, str):
            raise self.bad(column, *_not_text(value))
        try:
            value.encode()
        except UnicodeEncodeError as error:
            code = ord(value[error.start])
            raise self.bad(
                column,
                f"has a lone surrogate U+{code:04X} at character {error.start}, which is not valid text",
                "repair its encoding or remove the row",
            ) from error
        return value

    def turns(self, column: str, value: object) -> list[Message]:
        """The value as messages: a list of them, or a single one.

        Raises:
            BadRow: not messages, an unknown role, no content, a tool call, an image.
        """
        if isinstance(value, Mapping):
            return [self._turn(column, value)]
        if not isinstance(value, list):
            fault = "is text" if isinstance(value, str) else _not_text(value)[0]
            raise self.bad(column, f"{fault} where other rows have messages", "give every row the same type")
        if not value:
            raise self.bad(column, "has no messages (an empty list)", "give at least one turn, or remove the row")
        return [self._turn(f"{column}[{number}]", turn) for number, turn in enumerate(value)]

    def _turn(self, path: str, turn: object) -> Message:
        if not isinstance(turn, Mapping):
            raise self.bad(path, f"is a {_type(turn)}", 'a message is an object {"role": ..., "content": ...}')
        if any(turn.get(name) for name in _TOOLS):
            raise self.bad(path, "is a tool call", "tool calls are not supported; remove the row")
        role_key, text_key = ("from", "value") if turn.get("from") is not None else ("role", "content")
        role = turn.get(role_key)
        if not isinstance(role, str) or role.lower() not in ROLES:
            fault = "is missing" if role is None else f"is {brief(str(role))}"
            raise self.bad(f"{path}.{role_key}", fault, f"known roles: {', '.join(sorted(ROLES))}")
        content = turn.get(text_key)
        text = self._parts(f"{path}.{text_key}", content) if isinstance(content, list) else content
        return {"role": ROLES[role.lower()], "content": self.text(f"{path}.{text_key}", text)}

    def _parts(self, path: str, parts: Sequence[object]) -> str:
        texts = []
        for number, part in enumerate(parts):
            place = f"{path}[{number}]"
            if not isinstance(part, Mapping):
                raise self.bad(place, f"is a {_type(part)}", 'a part is an object {"type": "text", "text": ...}')
            kind = part.get("type", "object")
            if kind != "text":
                raise self.bad(place, f"is a part of type {kind}", "only text can be read; remove the row")
            texts.append(self.text(f"{place}.text", part.get("text")))
        return "".join(texts)

    def transcript(self, column: str, value: object) -> list[Message]:
        r"""The turns of a text with `\n\nHuman:` and `\n\nAssistant:`; text before the first mark is a system turn.

        One blank after a mark belongs to the mark; every other character is content.

        Raises:
            BadRow: not text, or without a mark.
        """
        text = self.text(column, value)
        if text.startswith(("Human:", "Assistant:")):
            text = "\n\n" + text
        pieces = _TURN.split(text)
        if len(pieces) == 1:
            raise self.bad(column, f"has no turn marked Human: or Assistant: ({brief(text, 40)})", "mark its turns")
        turns: list[Message] = [{"role": "system", "content": pieces[0]}] if pieces[0].strip() else []
        for speaker, content in zip(pieces[1::2], pieces[2::2], strict=True):
            turns.append({"role": ROLES[speaker.lower()], "content": content.removeprefix(" ")})
        return turns


def is_transcript(value: object) -> bool:
    r"""Whether a value is text with both a human and an assistant turn marked.

    Example:
        >>> is_transcript("\n\nHuman: Why?\n\nAssistant: Because.")
        True
    """
    return isinstance(value, str) and {m[1] for m in _TURN.finditer("\n\n" + value)} == {"Human", "Assistant"}


CellType = Literal["null", "text", "messages", "other"]


def cell_type(value: object) -> CellType:
    """What a cell holds, judged by its outermost type.

    Example:
        >>> cell_type([{"role": "user", "content": "Why?"}])
        'messages'
    """
    if value is None:
        return "null"
    if isinstance(value, str):
        return "text"
    if isinstance(value, Mapping) or (isinstance(value, list) and (not value or isinstance(value[0], Mapping))):
        return "messages"
    return "other"


def _not_text(value: object) -> tuple[str, str]:
    """What is wrong with a value that should be text, and what to do."""
    if value is None:
        return "is null", "text is expected; fill it in or remove the row"
    if isinstance(value, float) and math.isnan(value):
        return "is NaN (an empty cell of a table?)", "text is expected; fill it in or remove the row"
    if isinstance(value, int | float):
        return f"is a number ({value})", "text is expected; write it in quotes"
    if isinstance(value, list | dict):
        return "holds messages where other rows have text", "give every row the same type"
    return f"is a {_type(value)}", "text is expected"


def _type(value: object) -> str:
    names = {str: "text", list: "list", dict: "object", type(None): "null", bool: "truth value", int: "number"}
    return names.get(type(value), type(value).__name__)
