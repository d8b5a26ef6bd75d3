"""What is wrong, or merely odd, in comparisons: counted, with examples, before anything is trained on them."""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import sqrt
from typing import Literal, TypedDict

from dpobench.data.rows import Preference, RowProblem, brief
from dpobench.errors import UserError

Action = Literal["drop", "warn", "error"]

# kind -> (what is done, the share of rows above which it is an error all the same, what it means).
PROBLEMS: dict[str, tuple[Action, float, str]] = {
    "bad row": ("drop", 1.0, "cannot be read"),
    "prompts differ": ("drop", 1.0, "the prompt is not the one inside the dialogues"),
    "diverges before the last answer": ("drop", 1.0, "the dialogues diverge before the last answer"),
    "wrong roles": ("error", 0.0, "a user must ask and an assistant answer"),
    "empty answer": ("drop", 0.05, "an answer is empty"),
    "identical answers": ("drop", 0.05, "chosen and rejected are identical"),
    "duplicated pair": ("drop", 1.0, "the same pair stands in an earlier row"),
    "contradicted pair": ("warn", 1.0, "the reverse pair is there, too"),
    "empty prompt": ("warn", 1.0, "the prompt is empty"),
    "roles do not alternate": ("warn", 1.0, "two turns of one role follow each other; some chat templates refuse that"),
    "score tie": ("warn", 1.0, "score_chosen equals score_rejected"),
    "negative score margin": ("warn", 1.0, "score_chosen is below score_rejected"),
    "number not finite": ("warn", 1.0, "a numeric column is not finite; left out of the row"),
    "control tokens": ("warn", 1.0, "text holds control tokens of the tokenizer; they are read as plain text"),
    "few distinct rows": ("warn", 1.0, "less than half of the rows are distinct"),
}
_EXAMPLES = 3


class ProblemRecord(TypedDict):
    """A `Problem` as JSON holds it."""

    kind: str
    action: Action
    count: int
    share: float
    examples: list[str]


class LengthBiasRecord(TypedDict):
    """A `LengthBias` as JSON holds it."""

    longer_wins: float
    low: float
    high: float
    n: int
    equal: int
    accuracy: float


class DataRecord(TypedDict):
    """A `DataReport` as JSON holds it: `kept` is the number of its rows."""

    name: str
    layout: str
    read: int
    prompts: int
    problems: list[ProblemRecord]
    length: LengthBiasRecord | None
    columns: list[str]
    ignored: list[str]
    kept: int


@dataclass(frozen=True)
class Problem:
    """One kind of problem in one data set.

    Args:
        kind: a key of `PROBLEMS`.
        action: whether its rows were left out ("drop"), stay ("warn"), or end the program ("error").
        count: rows concerned.
        share: of the rows read, from 0 to 1.
        examples: up to three, with their row numbers.
    """

    kind: str
    action: Action
    count: int
    share: float
    examples: tuple[str, ...]

    @property
    def line(self) -> str:
        """The problem in one line."""
        meaning = PROBLEMS[self.kind][2]
        return f"{self.action:<5} {_rows(self.count)} ({self.share:.1%}): {meaning}; {'; '.join(self.examples)}"


@dataclass(frozen=True)
class LengthBias:
    """How well length alone predicts which answer was chosen.

    Args:
        longer_wins: share of pairs whose longer answer was chosen, pairs of equal length left out.
        low: lower end of its 95 % Wilson interval.
        high: upper end.
        n: pairs of unequal length, in characters.
        equal: pairs of equal length.
    """

    longer_wins: float
    low: float
    high: float
    n: int
    equal: int

    @property
    def accuracy(self) -> float:
        """Accuracy of the better of the two classifiers "longer wins" and "shorter wins" on these pairs."""
        return max(self.longer_wins, 1 - self.longer_wins)

    def to_json(self) -> LengthBiasRecord:
        """The numbers as JSON holds them."""
        return {
            "longer_wins": self.longer_wins,
            "low": self.low,
            "high": self.high,
            "n": self.n,
            "equal": self.equal,
            "accuracy": self.accuracy,
        }


@dataclass(frozen=True)
class DataReport:
    """What was read, what was left out and why.

    Args:
        name: file or data set.
        layout: the layout it had.
        rows_read: how many rows the source has.
        rows: those to train or score on, in order.
        prompts: how many distinct prompts these have.
        problems: each kind that occurred.
        length: how well length alone predicts the preferred answer; None without a pair of unequal lengths.
        columns: numeric columns, which the rows hold.
        ignored: columns that nothing reads.
    """

    name: str
    layout: str
    rows_read: int
    rows: tuple[Preference, ...] = field(repr=False)
    prompts: int
    problems: tuple[Problem, ...]
    length: LengthBias | None
    columns: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """The report as plain lines, errors first."""
        order = {"error": 0, "drop": 1, "warn": 2}
        layout = f" as {self.layout}" if self.layout else ""
        lines = [
            f"{self.name}: {_rows(self.rows_read)} read{layout}, {len(self.rows):,} kept, {self.prompts:,} prompts"
        ]
        lines += [p.line for p in sorted(self.problems, key=lambda p: order[p.action])]
        if self.length is not None:
            b = self.length
            lines.append(
                f"note  the longer answer was chosen in {b.longer_wins:.1%} [{b.low:.1%}, {b.high:.1%}] of {b.n:,} "
                f"pairs ({b.equal:,} of equal length): length alone is right in {b.accuracy:.1%}"
            )
        if self.ignored:
            lines.append(f"note  columns not read: {', '.join(self.ignored)}")
        return lines

    def to_json(self) -> DataRecord:
        """The report as JSON holds it, without the rows themselves."""
        return {
            "name": self.name,
            "layout": self.layout,
            "read": self.rows_read,
            "prompts": self.prompts,
            "problems": [
                {"kind": p.kind, "action": p.action, "count": p.count, "share": p.share, "examples": list(p.examples)}
                for p in self.problems
            ],
            "length": self.length.to_json() if self.length else None,
            "columns": list(self.columns),
            "ignored": list(self.ignored),
            "kept": len(self.rows),
        }

    def require_usable(self) -> "DataReport":
        """This report, if its rows can be used.

        Raises:
            UserError: a problem is an error, or no row is left.
        """
        errors = [p for p in self.problems if p.action == "error"]
        if errors:
            raise UserError("\n".join(f"{self.name}: {p.line}; {_remedy(p.kind)}" for p in errors))
        if not self.rows:
            reasons = "; ".join(p.line for p in self.problems if p.action == "drop")
            raise UserError(f"{self.name}: none of {_rows(self.rows_read)} can be used: {reasons}")
        return self


def examine(
    rows: Sequence[Preference],
    *,
    name: str = "",
    layout: str = "",
    problems: Iterable[RowProblem] = (),
    control_tokens: Collection[str] = (),
    drop_wrong_roles: bool = False,
) -> DataReport:
    """Look for everything that makes a comparison useless or doubtful.

    Args:
        rows: comparisons, as `convert` gives them.
        name: of the data set.
        layout: the layout they had.
        problems: what `convert` noted while it read them.
        control_tokens: texts the tokenizer would read as control tokens.
        drop_wrong_roles: leave such rows out instead of refusing the data set.

    Returns:
        The report; nothing is raised here, see `DataReport.require_usable`.

    Example:
        >>> prompt = ({"role": "user", "content": "Why?"},)
        >>> report = examine([Preference(prompt, "yes", "no"), Preference(prompt, "same", "same", row=1)], name="rows")
        >>> report.lines()[0]
        'rows: 2 rows read, 1 kept, 1 prompts'
        >>> [(problem.kind, problem.count) for problem in report.problems]
        [('identical answers', 1)]
    """
    problems = list(problems)
    unread = {problem.row for problem in problems if PROBLEMS[problem.kind][0] != "warn"}
    read = len(rows) + len(unread)
    usable = []
    first_rows: dict[tuple[str, str, str], int] = {}
    for row in rows:
        kind, detail = _fault(row, first_rows)
        if kind is None:
            usable.append(row)
        else:
            problems.append(RowProblem(kind, row.row, detail))
    problems += _oddities(usable, control_tokens)
    distinct = read - sum(problem.kind == "duplicated pair" for problem in problems)
    if 2 * distinct < read:
        problems.append(RowProblem("few distinct rows", 0, f"{_rows(read)}, {distinct:,} distinct"))
    actions: dict[str, Action] = {"wrong roles": "drop"} if drop_wrong_roles else {}
    return DataReport(
        name or (rows[0].source if rows else "data"),
        layout,
        read,
        tuple(usable),
        len({row.prompt_id for row in usable}),
        tuple(_by_kind(problems, read, actions)),
        _length_bias(usable),
    )


def _fault(row: Preference, first_rows: dict[tuple[str, str, str], int]) -> tuple[str | None, str]:
    """Why a row cannot be used, or None; `first_rows` has the row number of each pair so far, and takes this one."""
    if not row.prompt or row.prompt[-1]["role"] != "user":
        return "wrong roles", f'"prompt" ends with role {row.prompt[-1]["role"] if row.prompt else "none"}'
    empty = [side for side in ("chosen", "rejected") if not getattr(row, side).strip()]
    if empty:
        return "empty answer", " and ".join(f'"{side}"' for side in empty) + " is empty"
    if row.chosen == row.rejected:
        return "identical answers", brief(row.chosen)
    pair = (row.prompt_id, row.chosen, row.rejected)
    if pair in first_rows:
        return "duplicated pair", f"repeats row {first_rows[pair]}"
    first_rows[pair] = row.row
    return None, ""


def _oddities(rows: Sequence[Preference], control_tokens: Collection[str]) -> list[RowProblem]:
    """What is odd in rows that can be used."""
    odd = []
    pattern = (
        re.compile("|".join(map(re.escape, sorted(control_tokens, key=len, reverse=True)))) if control_tokens else None
    )
    row_numbers = {(row.prompt_id, row.chosen, row.rejected): row.row for row in rows}
    for row in rows:
        reverse = row_numbers.get((row.prompt_id, row.rejected, row.chosen))
        if reverse is not None:
            odd.append(RowProblem("contradicted pair", row.row, f"against row {reverse}"))
        if not row.prompt[-1]["content"].strip():
            odd.append(RowProblem("empty prompt", row.row, f"chosen {brief(row.chosen, 40)}"))
        roles = [turn["role"] for turn in row.prompt]
        if any(a == b for a, b in pairwise(roles)):
            odd.append(RowProblem("roles do not alternate", row.row, " ".join(roles[-6:])))
        odd += _score_oddities(row)
        if pattern is not None:
            tokens = [match for text in row.texts for match in pattern.findall(text)]
            if tokens:
                odd.append(RowProblem("control tokens", row.row, brief(tokens[0])))
    return odd


def _score_oddities(row: Preference) -> list[RowProblem]:
    chosen, rejected = row.columns.get("score_chosen"), row.columns.get("score_rejected")
    if chosen is None or rejected is None or chosen > rejected:
        return []
    kind = "score tie" if chosen == rejected else "negative score margin"
    return [RowProblem(kind, row.row, f"{chosen:g} against {rejected:g}")]


def _by_kind(problems: Sequence[RowProblem], read: int, actions: Mapping[str, Action]) -> Iterable[Problem]:
    """The problems of rows, counted by kind; `actions` has those that differ from `PROBLEMS`."""
    counts = Counter(problem.kind for problem in problems)
    for kind, (usual, limit, _) in PROBLEMS.items():
        if not counts[kind]:
            continue
        share = counts[kind] / read
        action = actions.get(kind, "error" if share > limit else usual)
        first = [problem for problem in problems if problem.kind == kind][:_EXAMPLES]
        # The error of a bad row names the row itself.
        examples = tuple(p.detail if kind == "bad row" else f"row {p.row}: {p.detail}" for p in first)
        yield Problem(kind, action, counts[kind], share, examples)


def _remedy(kind: str) -> str:
    if kind == "wrong roles":
        return "mend these rows, or leave them out with --set data.on_bad_row=drop"
    return f"more than {PROBLEMS[kind][1]:.0%} is taken for a mistake in the data: mend or remove these rows"


def _length_bias(rows: Sequence[Preference]) -> LengthBias | None:
    differences = [len(row.chosen) - len(row.rejected) for row in rows]
    n = sum(d != 0 for d in differences)
    if not n:
        return None
    share = sum(d > 0 for d in differences) / n
    # Wilson's interval of a share.
    z2 = 1.959964**2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    return LengthBias(share, max(0.0, middle - half), min(1.0, middle + half), n, len(rows) - n)


def _rows(count: int) -> str:
    return f"{count:,} row" + ("" if count == 1 else "s")
