"""Held-out prompts: what they are, on which side of the split they fall, and their file."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dpobench.artifacts.files import write_bytes

if TYPE_CHECKING:
    pass


Split = Literal["selection", "test"]
Message = Mapping[str, str]


@dataclass(frozen=True)
class Prompt:
    """One held-out prompt.

    Args:
        id: hash of its messages: stable over files, orders and machines.
        messages: the dialogue so far, `{"role": ..., "content": ...}` each; the last is the user's.
        token_ids: the prompt as the model reads it, generation prompt included.
        chosen: the data set's preferred answer, where there is one.
    """

    id: str
    messages: tuple[Message, ...]
    token_ids: tuple[int, ...] = ()
    chosen: str | None = None

    @property
    def text(self) -> str:
        """Content of the last message."""
        return self.messages[-1]["content"]

    @property
    def split(self) -> Split:
        """Half the prompts choose the strength, the other half is reported; decided by hash, once and for all."""
        return split_of(self.id)


def split_of(prompt: str) -> Split:
    """The side of the selection/test split a prompt id falls on."""
    return "selection" if hashlib.sha256(f"split:{prompt}".encode()).digest()[0] < 128 else "test"


PROMPTS = "prompts.jsonl"


def read_prompts(folder: Path) -> list[Prompt]:
    """Read held-out prompts."""
    lines = (folder / PROMPTS).read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [Prompt(row["id"], tuple(row["messages"]), tuple(row["token_ids"]), row["chosen"]) for row in rows]


def write_prompts(folder: Path, prompts: Sequence[Prompt]) -> None:
    """Write held-out prompts, one JSON object a line."""
    rows = [
        {"id": p.id, "split": p.split, "messages": p.messages, "token_ids": p.token_ids, "chosen": p.chosen}
        for p in prompts
    ]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    # JSON leaves these inside strings, and readers of lines split at them.
    for mark in "\x85\u2028\u2029":
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    write_bytes(folder / PROMPTS, text.encode())
