"""Comparisons as the model reads them: one prompt for both sides, the boundary in tokens, an end token iff the answer ended."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TypedDict

import jinja2
import numpy as np

from dpobench.data.rows import Message, Preference
from dpobench.data.template import Template, TemplateRecord, Tokenizer, Writer, refused, resolve_template
from dpobench.data.tokens import TokenPair
from dpobench.errors import UserError

# Rows tokenised at a time.
_CHUNK = 1000
# Why a row is dropped; reports and tables show these words.
_LONG, _REFUSED = "prompt too long", "template refuses the dialogue"
_SAME, _EMPTY = "answers identical once cut", "answer without a token"


@dataclass(frozen=True)
class Limits:
    """Numbers of tokens beyond which a pair is cut or left out.

    Args:
        max_tokens: of a prompt and one answer together; a longer answer is cut.
        max_prompt_tokens: of a prompt, its begin token and the generation prompt included; a row with a longer one is dropped.
    """

    max_tokens: int
    max_prompt_tokens: int


class TokenRecord(TypedDict):
    """A `TokenReport` as JSON holds it: `kept` is the number of pairs."""

    rows: int
    kept: int
    dropped: dict[str, int]
    dropped_rows: dict[str, list[int]]
    cut_answers: int
    cut_pairs: int
    cut_golds: int
    neutralised: int
    tokens: dict[str, dict[str, float]]
    total: int
    shared: float
    template: TemplateRecord
    limits: dict[str, int]


@dataclass(frozen=True)
class TokenReport:
    """Counts of a tokenisation.

    Args:
        rows: number of comparisons given.
        pairs: number of tokenised pairs made of them.
        dropped: reason -> number of rows; they are missing for every variant alike.
        dropped_rows: reason -> the first row numbers.
        cut_answers: answers longer than the room left by their prompt; they have no end token.
        cut_pairs: pairs with at least one such answer.
        cut_golds: gold answers that were longer; they are not counted above.
        neutralised: number of control tokens in the data's text, which are read as plain text.
        tokens: prompt, chosen, rejected, and gold where there is any -> name of a quantile -> length in tokens.
        total: tokens a padding-free step over all pairs computes, prompts counted twice, gold answers left out.
        shared: share of these that are prompt tokens.
        template: how dialogues were written.
        limits: at which pairs were cut or left out.
    """

    rows: int
    pairs: int
    dropped: Mapping[str, int]
    dropped_rows: Mapping[str, tuple[int, ...]]
    cut_answers: int
    cut_pairs: int
    cut_golds: int
    neutralised: int
    tokens: Mapping[str, Mapping[str, float]]
    total: int
    shared: float
    template: Template
    limits: Limits

    def to_json(self) -> TokenRecord:
        """The report as JSON holds it."""
        return {
            "rows": self.rows,
            "kept": self.pairs,
            "dropped": dict(self.dropped),
            "dropped_rows": {reason: list(rows) for reason, rows in self.dropped_rows.items()},
            "cut_answers": self.cut_answers,
            "cut_pairs": self.cut_pairs,
            "cut_golds": self.cut_golds,
            "neutralised": self.neutralised,
            "tokens": {side: dict(quantiles) for side, quantiles in self.tokens.items()},
            "total": self.total,
            "shared": self.shared,
            "template": self.template.to_json(),
            "limits": asdict(self.limits),
        }

    def lines(self) -> list[str]:
        """The report as plain lines."""
        lines = [
            f"{self.rows:,} rows tokenised with template {self.template.name}, {self.pairs:,} kept, {self.total:,} tokens, "
            f"{self.shared:.1%} of them in prompts"
        ]
        lines += [
            f"drop  {count:,} rows: {reason}; first rows {', '.join(map(str, self.dropped_rows[reason]))}"
            for reason, count in self.dropped.items()
        ]
        for count, what in ((self.cut_answers, "answers"), (self.cut_golds, "gold answers")):
            if count:
                lines.append(f"warn  {count:,} {what} cut at {self.limits.max_tokens} tokens: they have no end token")
        if self.neutralised:
            lines.append(f"warn  {self.neutralised:,} control tokens in the data read as plain text")
        for side, quantiles in self.tokens.items():
            lines.append(f"note  {side} tokens: " + ", ".join(f"{name} {value:g}" for name, value in quantiles.items()))
        return lines


@dataclass
class _Counts:
    """What is counted while rows are tokenised; `prompt_lengths` has dropped rows, too."""

    dropped: Counter[str] = field(default_factory=Counter)
    dropped_rows: dict[str, list[int]] = field(default_factory=dict)
    prompt_lengths: list[int] = field(default_factory=list)
    cut_answers: int = 0
    cut_pairs: int = 0
    cut_golds: int = 0
    neutralised: int = 0
    refusal: jinja2.TemplateError | None = None

    def drop(self, reason: str, row: Preference) -> None:
        self.dropped[reason] += 1
        first = self.dropped_rows.setdefault(reason, [])
        if len(first) < 5:
            first.append(row.row)


@dataclass(frozen=True)
class _RowText:
    """A row as the template writes it; the answers follow the prompt."""

    row: Preference
    prompt: str
    chosen: str
    rejected: str
    gold: str | None


def tokenise(
    rows: Sequence[Preference],
    tokenizer: Tokenizer,
    *,
    template: str = "auto",
    max_tokens: int = 1024,
    max_prompt_tokens: int = 512,
    most_lost: float = 0.10,
) -> tuple[list[TokenPair], TokenReport]:
    """Tokenise comparisons.

    The prompt is tokenised once and serves both sides; a completion is the tokens of what the template writes after it. Prompts
    are never cut: a row whose prompt is too long is left out. An answer is cut at the tokens that remain, and then has no end token.

    Args:
        rows: comparisons.
        tokenizer: a Hugging Face tokenizer with an end token.
        template: "auto", "plain" or a Jinja file; see `resolve_template`.
        max_tokens: of a prompt and one answer together.
        max_prompt_tokens: of a prompt, its begin token and the generation prompt included.
        most_lost: share of the rows, from 0 to 1, that may be left out because their prompt is too long, and likewise for those
            that the template refuses.

    Returns:
        Pairs in the order of the rows, and the report.

    Raises:
        UserError: no end token; limits that leave no answer a token; more than `most_lost` of the rows left out; a template that
            cannot be used.
    """
    if not 0 < max_prompt_tokens < max_tokens:
        raise UserError(
            f"max_prompt_tokens {max_prompt_tokens} and max_tokens {max_tokens}: the prompt's limit must lie between 0 and the "
            f"limit of prompt and answer together, or no answer has room"
        )
    limits = Limits(max_tokens, max_prompt_tokens)
    writer = Writer(tokenizer, resolve_template(tokenizer, template))
    counts = _Counts()
    pairs: list[TokenPair] = []
    for start in range(0, len(rows), _CHUNK):
        texts = list(_texts(rows[start : start + _CHUNK], writer, counts))
        pairs += _pairs(texts, writer, counts, limits)
    _refuse_losses(len(rows), len(pairs), counts, max_prompt_tokens, most_lost)
    return pairs, _report(pairs, len(rows), counts, writer.template, limits)


def tokenise_prompt(messages: Sequence[Message], tokenizer: Tokenizer, template: str = "auto") -> tuple[int, ...]:
    """Ids of a prompt to generate from: the same that `tokenise` trains on.

    Args:
        messages: the dialogue; the last turn is the user's.
        tokenizer: a Hugging Face tokenizer.
        template: "auto", "plain" or a Jinja file; see `resolve_template`.

    Raises:
        UserError: the template cannot be used.
    """
    writer = Writer(tokenizer, resolve_template(tokenizer, template))
    try:
        return tuple(writer.prompt_ids([writer.prompt(messages)])[0])
    except jinja2.TemplateError as error:
        raise refused(error) from error


def _texts(rows: Sequence[Preference], writer: Writer, counts: _Counts) -> Iterator[_RowText]:
    for row in rows:
        try:
            prompt = writer.prompt(row.prompt)
            chosen, rejected = (writer.answer(row.prompt, answer, prompt) for answer in (row.chosen, row.rejected))
            gold = None if row.gold is None else writer.answer(row.prompt, row.gold, prompt)
        except jinja2.TemplateError as error:
            counts.refusal = counts.refusal or error
            counts.drop(_REFUSED, row)
            continue
        counts.neutralised += sum(map(writer.count_control, row.texts))
        yield _RowText(row, prompt, chosen, rejected, gold)


def _pairs(texts: Sequence[_RowText], writer: Writer, counts: _Counts, limits: Limits) -> Iterator[TokenPair]:
    prompts = writer.prompt_ids([text.prompt for text in texts])
    chosen = writer.answer_ids([text.chosen for text in texts])
    rejected = writer.answer_ids([text.rejected for text in texts])
    golds = iter(writer.answer_ids([text.gold for text in texts if text.gold is not None]))
    for text, prompt, *answers in zip(texts, prompts, chosen, rejected, strict=True):
        if text.gold is not None:
            answers.append(next(golds))
        counts.prompt_lengths.append(len(prompt))
        if len(prompt) > limits.max_prompt_tokens:
            counts.drop(_LONG, text.row)
        elif min(map(len, answers)) < 2:
            counts.drop(_EMPTY, text.row)
        else:
            room = limits.max_tokens - len(prompt)
            fitting = [answer[:room] for answer in answers]
            if fitting[0] == fitting[1]:
                counts.drop(_SAME, text.row)
                continue
            cut = sum(len(answer) > room for answer in answers[:2])
            counts.cut_answers += cut
            counts.cut_pairs += cut > 0
            counts.cut_golds += any(len(answer) > room for answer in answers[2:])
            ids = [np.asarray(side, np.int64) for side in (prompt, *fitting)]
            gold = ids[3] if len(ids) > 3 else None
            yield TokenPair(text.row.id, ids[0], ids[1], ids[2], dict(text.row.columns), gold=gold)


def _refuse_losses(rows: int, pairs: int, counts: _Counts, limit: int, most_lost: float) -> None:
    lost = counts.dropped[_LONG]
    if lost > most_lost * rows:
        which = f"all {rows:,} rows" if lost == rows else f"{lost:,} of {rows:,} rows ({lost / rows:.0%})"
        raise UserError(
            f"{which}: prompt > max_prompt_tokens {limit} (shortest prompt {min(counts.prompt_lengths)} tokens, "
            f"longest {max(counts.prompt_lengths)}); at most {most_lost:.0%} may be lost: "
            "raise --set recipe.max_prompt_tokens, or allow more with --set data.most_lost"
        )
    if counts.refusal is not None and counts.dropped[_REFUSED] > most_lost * rows:
        raise UserError(f"{counts.dropped[_REFUSED]:,} of {rows:,} rows: {refused(counts.refusal)}") from counts.refusal
    if rows and not pairs:
        reasons = ", ".join(f"{reason}: {count:,}" for reason, count in counts.dropped.items())
        raise UserError(
            f"all {rows:,} rows are lost in tokenisation ({reasons}); raise --set recipe.max_tokens, or mend the rows"
        )


def _report(pairs: Sequence[TokenPair], rows: int, counts: _Counts, template: Template, limits: Limits) -> TokenReport:
    lengths = {side: [len(getattr(pair, side)) for pair in pairs] for side in ("prompt", "chosen", "rejected")}
    golds = [len(pair.gold) for pair in pairs if pair.gold is not None]
    total = sum(pair.size for pair in pairs)
    return TokenReport(
        rows=rows,
        pairs=len(pairs),
        dropped=dict(counts.dropped),
        dropped_rows={reason: tuple(first) for reason, first in counts.dropped_rows.items()},
        cut_answers=counts.cut_answers,
        cut_pairs=counts.cut_pairs,
        cut_golds=counts.cut_golds,
        neutralised=counts.neutralised,
        tokens={side: _quantiles(values) for side, values in (lengths | ({"gold": golds} if golds else {})).items()},
        total=total,
        shared=2 * sum(lengths["prompt"]) / total if total else 0.0,
        template=template,
        limits=limits,
    )


def _quantiles(values: Sequence[int]) -> dict[str, float]:
    if not values:
        return {}
    names = {"min": 0.0, "median": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
    return {name: float(np.quantile(values, q)) for name, q in names.items()}
