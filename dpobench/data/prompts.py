"""Held-out prompts: what they are, on which side of the split they fall, and their file."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dpobench.artifacts.files import write_bytes
from dpobench.data.rows import Message

PROMPTS = "prompts.jsonl"
Split = Literal["selection", "test"]


@dataclass(frozen=True)
class Prompt:
    """One held-out prompt.

    Args:
        id: hash of its messages: stable over files, orders and machines.
        messages: the dialogue so far, `{"role": ..., "content": ...}` each; the last is the user's.
        token_ids: the prompt as the model reads it, generation prompt included.
        chosen: the data set's preferred answer, where there is one.

    Example:
        >>> prompt = Prompt("a3", ({"role": "user", "content": "Why?"},), token_ids=(1, 17, 4))
        >>> prompt.text, prompt.split
        ('Why?', 'test')
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
        """Half of the prompts choose beta, the other half is reported; decided by hash, so a prompt never changes sides."""
        return split_of(self.id)


def split_of(prompt: str) -> Split:
    """The side of the selection/test split on which a prompt id falls.

    Example:
        >>> split_of("a2"), split_of("a3")
        ('selection', 'test')
    """
    return "selection" if hashlib.sha256(f"split:{prompt}".encode()).digest()[0] < 128 else "test"


def read_prompts(folder: Path) -> list[Prompt]:
    """Read the held-out prompts that `write_prompts` wrote into a folder."""
    lines = (folder / PROMPTS).read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [Prompt(row["id"], tuple(row["messages"]), tuple(row["token_ids"]), row["chosen"]) for row in rows]


def write_prompts(folder: Path, prompts: Sequence[Prompt]) -> None:
    """Write held-out prompts into `prompts.jsonl` of a folder, one JSON object a line."""
    rows = [
        {"id": p.id, "split": p.split, "messages": p.messages, "token_ids": p.token_ids, "chosen": p.chosen}
        for p in prompts
    ]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    # JSON leaves these inside strings, and readers of lines split at them.
    for mark in "\x85\u2028\u2029":
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    write_bytes(folder / PROMPTS, text.encode())
