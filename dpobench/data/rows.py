"""One comparison of two answers, as every layout is brought to it and as everything downstream reads it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from dpobench.artifacts.files import digest

Message = Mapping[str, str]


def prompt_id(messages: Sequence[Message]) -> str:
    """Stable identity of a prompt: a hash of its roles and contents, alike over files, orders and machines."""
    return digest([[m["role"], m["content"]] for m in messages])


@dataclass(frozen=True)
class Preference:
    """A prompt, the answer that was preferred and the one that was not.

    Args:
        prompt: whole turns `{"role": ..., "content": ...}`: an optional system turn, then the dialogue; the last is the user's.
        chosen: content of the one assistant turn that was preferred.
        rejected: content of the other.
        columns: numeric extra columns of the data set (scores, weights).
        source: file or data set, as the user named it.
        row: 0-based row number in it.
        gold: content of a third answer, the best one; None where the data set has none.
    """

    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    columns: Mapping[str, float] = field(default_factory=dict)
    source: str = ""
    row: int = 0
    gold: str | None = None

    @cached_property
    def id(self) -> str:
        """Hash of prompt, answers and columns: where the row stands does not enter, nor a gold answer that is not there."""
        turns = [[m["role"], m["content"]] for m in self.prompt]
        third = [] if self.gold is None else [self.gold]
        return digest(turns, self.chosen, self.rejected, dict(self.columns), *third)

    @cached_property
    def prompt_id(self) -> str:
        """Hash of the prompt alone, shared by all rows that ask the same."""
        return prompt_id(self.prompt)

    @property
    def texts(self) -> tuple[str, ...]:
        """Every text of the row: the prompt's turns, then the answers."""
        third = () if self.gold is None else (self.gold,)
        return (*(turn["content"] for turn in self.prompt), self.chosen, self.rejected, *third)


@dataclass(frozen=True)
class Finding:
    """Something noted about one row while it was read.

    Args:
        kind: which problem; a key of `dpobench.data.check.PROBLEMS`.
        row: 0-based row number.
        detail: what stood there, one line.
    """

    kind: str
    row: int
    detail: str


def brief(text: str, width: int = 60) -> str:
    """A text in one quoted line of at most `width` characters, control characters escaped, so that no terminal obeys it."""
    shown = text if len(text) <= width else text[: width - 1] + "…"
    return '"' + "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown) + '"'
