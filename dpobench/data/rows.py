"""One comparison of two answers: every layout is brought to it, and everything downstream reads it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from dpobench.artifacts.files import digest

# One row as its file holds it, by column; `dpobench.data.layouts.convert` checks the cells and makes a `Preference` of it.
RawRow = Mapping[str, object]
# One turn of a dialogue: {"role": "system" | "user" | "assistant", "content": TEXT}.
Message = Mapping[str, str]


def prompt_id(messages: Sequence[Message]) -> str:
    """Stable identity of a prompt: a hash of its roles and contents, the same in every file, order and machine.

    Args:
        messages: the turns of the prompt.

    Returns: 12 hexadecimal digits.

    Example:
        >>> prompt_id([{"role": "user", "content": "Why?"}])
        'e0b1b019c517'
    """
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

    Example:
        >>> pair = Preference(({"role": "user", "content": "2 + 2?"},), "4", "5", {"score_chosen": 1.0})
        >>> pair.texts
        ('2 + 2?', '4', '5')
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
        """Hash of prompt, answers and columns; the row number does not enter, and a gold answer only where there is one."""
        turns = [[m["role"], m["content"]] for m in self.prompt]
        gold = [] if self.gold is None else [self.gold]
        return digest(turns, self.chosen, self.rejected, dict(self.columns), *gold)

    @cached_property
    def prompt_id(self) -> str:
        """Hash of the prompt alone, shared by all rows with this prompt."""
        return prompt_id(self.prompt)

    @property
    def texts(self) -> tuple[str, ...]:
        """Every text of the row: the prompt's turns, then the answers."""
        gold = () if self.gold is None else (self.gold,)
        return (*(turn["content"] for turn in self.prompt), self.chosen, self.rejected, *gold)


@dataclass(frozen=True)
class RowProblem:
    """Something wrong or odd in one row.

    Args:
        kind: which problem; a key of `dpobench.data.check.PROBLEMS`.
        row: 0-based row number.
        detail: what the row holds, in one line.
    """

    kind: str
    row: int
    detail: str


def brief(text: str, width: int = 60) -> str:
    r"""A text in one quoted line, control characters escaped so that no terminal obeys them.

    Args:
        text: any text.
        width: most characters of the text that are shown.

    Example:
        >>> print(brief("two\nlines"))
        "two\nlines"
        >>> brief("a long answer", width=7)
        '"a long…"'
    """
    shown = text if len(text) <= width else text[: width - 1] + "…"
    return '"' + "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown) + '"'
