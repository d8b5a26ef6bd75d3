"""Comparisons as the model reads them: one prompt for both sides, the boundary in tokens, one end token iff the answer ended."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import jinja2
import numpy as np

from dpobench.data.rows import Message, Preference
from dpobench.data.template import Writer, refused, resolve_template
from dpobench.data.tokens import TokenPair
from dpobench.errors import UserError

_AT_ONCE = 1000
_LONG, _REFUSED = "prompt too long", "template refuses the dialogue"
_SAME, _EMPTY = "answers identical once cut", "answer without a token"


@dataclass(frozen=True)
class TokenReport:
    """What tokenisation made of the rows.

    Args:
        rows: comparisons given.
        kept: comparisons made.
        dropped: reason -> count; these rows are missing for every variant alike.
        dropped_rows: reason -> the first row numbers.
        cut_answers: answers longer than the room left by their prompt; they have no end token.
        cut_pairs: pairs with at least one such answer.
        cut_golds: gold answers that were longer; they are not counted above.
        neutralised: control tokens found in the data's text and read as plain text.
        tokens: prompt, chosen, rejected, gold where there is any -> quantiles of their length in tokens.
        total: tokens a padding-free step over all pairs computes, prompts counted twice, gold answers left out.
        shared: share of these that are prompt tokens.
        template: name and hash of the template.
        limits: max_tokens and max_prompt_tokens.
    """

    rows: int
    kept: int
    dropped: Mapping[str, int]
    dropped_rows: Mapping[str, tuple[int, ...]]
    cut_answers: int
    cut_pairs: int
    cut_golds: int
    neutralised: int
    tokens: Mapping[str, Mapping[str, float]]
    total: int
    shared: float
    template: Mapping[str, str]
    limits: Mapping[str, int]

    def to_json(self) -> dict[str, Any]:
        """The report as JSON can hold it."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The report as plain lines."""
        lines = [
            f"{self.rows:,} rows tokenised with template {self.template['name']}, {self.kept:,} kept, {self.total:,} tokens, "
            f"{self.shared:.1%} of them in prompts"
        ]
        lines += [
            f"drop  {count:,} rows: {reason}; first rows {', '.join(map(str, self.dropped_rows[reason]))}"
            for reason, count in self.dropped.items()
        ]
        for count, what in ((self.cut_answers, "answers"), (self.cut_golds, "gold answers")):
            if count:
                most = self.limits["max_tokens"]
                lines.append(f"warn  {count:,} {what} cut at {most} tokens: they have no end token")
        if self.neutralised:
            lines.append(f"warn  {self.neutralised:,} control tokens in the data read as plain text")
        lines += [f"note  {side} tokens: " + _shown(numbers) for side, numbers in self.tokens.items()]
        return lines


def _shown(numbers: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in numbers.items())


@dataclass
class _Tally:
    dropped: Counter[str] = field(default_factory=Counter)
    dropped_rows: dict[str, list[int]] = field(default_factory=dict)
    lengths: list[int] = field(default_factory=list)
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
class _Text:
    row: Preference
    prompt: str
    chosen: str
    rejected: str
    gold: str | None


def tokenise(
    rows: Sequence[Preference],
    tokenizer: Any,
    *,
    template: str = "auto",
    max_tokens: int = 1024,
    max_prompt_tokens: int = 512,
    most_lost: float = 0.10,
) -> tuple[list[TokenPair], TokenReport]:
    """Tokenise comparisons.

    The prompt is tokenised once and serves both sides; a completion is the tokens of what the template writes after it. Prompts
    are never cut: a row whose prompt is too long is left out. An answer is cut at the room that is left, and then has no end token.

    Args:
        rows: comparisons.
        tokenizer: a Hugging Face tokenizer with an end token.
        template: "auto", "plain" or a Jinja file; see `dpobench.data.template.resolve_template`.
        max_tokens: of a prompt and one answer together.
        max_prompt_tokens: of a prompt, its begin token and the generation prompt included.
        most_lost: share of the rows that may be lost for their prompt, because it is too long or the template refuses it.

    Returns:
        Pairs in the order of the rows, and the report.

    Raises:
        UserError: no end token; limits that leave no room; more than `most_lost` of the prompts lost; a template that cannot be used.
    """
    _require(tokenizer, max_tokens, max_prompt_tokens)
    writer = Writer(tokenizer, resolve_template(tokenizer, template))
    tally = _Tally()
    pairs: list[TokenPair] = []
    for start in range(0, len(rows), _AT_ONCE):
        texts = list(_texts(rows[start : start + _AT_ONCE], writer, tally))
        pairs += _paired(texts, writer, tally, max_tokens, max_prompt_tokens)
    _refuse_losses(len(rows), len(pairs), tally, max_prompt_tokens, most_lost)
    limits = {"max_tokens": max_tokens, "max_prompt_tokens": max_prompt_tokens}
    return pairs, _report(pairs, len(rows), tally, writer, limits)


def tokenise_prompt(messages: Sequence[Message], tokenizer: Any, template: str = "auto") -> tuple[int, ...]:
    """Ids of a prompt to generate from: the same that `tokenise` trains on.

    Raises:
        UserError: the template cannot be used.
    """
    writer = Writer(tokenizer, resolve_template(tokenizer, template))
    try:
        return tuple(writer.prompt_ids([writer.prompt(messages)])[0])
    except jinja2.TemplateError as error:
        raise refused(error) from error


def _require(tokenizer: Any, max_tokens: int, max_prompt_tokens: int) -> None:
    if tokenizer.eos_token_id is None:
        raise UserError(
            "the tokenizer has no end token (eos_token), so no answer could end; set eos_token in its tokenizer_config.json"
        )
    if not 0 < max_prompt_tokens < max_tokens:
        raise UserError(
            f"max_prompt_tokens {max_prompt_tokens} and max_tokens {max_tokens}: the prompt's limit must lie between 0 and the "
            f"limit of prompt and answer together, or no answer has room"
        )


def _texts(rows: Sequence[Preference], writer: Writer, tally: _Tally) -> Iterator[_Text]:
    for row in rows:
        try:
            prompt = writer.prompt(row.prompt)
            chosen, rejected = (writer.answer(row.prompt, answer, prompt) for answer in (row.chosen, row.rejected))
            gold = None if row.gold is None else writer.answer(row.prompt, row.gold, prompt)
        except jinja2.TemplateError as error:
            tally.refusal = tally.refusal or error
            tally.drop(_REFUSED, row)
            continue
        tally.neutralised += sum(map(writer.count_control, row.texts))
        yield _Text(row, prompt, chosen, rejected, gold)


def _paired(
    texts: Sequence[_Text], writer: Writer, tally: _Tally, max_tokens: int, max_prompt_tokens: int
) -> Iterator[TokenPair]:
    prompts = writer.prompt_ids([text.prompt for text in texts])
    chosen = writer.answer_ids([text.chosen for text in texts])
    rejected = writer.answer_ids([text.rejected for text in texts])
    golds = iter(writer.answer_ids([text.gold for text in texts if text.gold is not None]))
    for text, prompt, *answers in zip(texts, prompts, chosen, rejected, strict=True):
        if text.gold is not None:
            answers.append(next(golds))
        tally.lengths.append(len(prompt))
        if len(prompt) > max_prompt_tokens:
            tally.drop(_LONG, text.row)
        elif min(map(len, answers)) < 2:
            tally.drop(_EMPTY, text.row)
        else:
            room = max_tokens - len(prompt)
            kept = [side[:room] for side in answers]
            if kept[0] == kept[1]:
                tally.drop(_SAME, text.row)
                continue
            cut = sum(len(side) > room for side in answers[:2])
            tally.cut_answers += cut
            tally.cut_pairs += cut > 0
            tally.cut_golds += any(len(side) > room for side in answers[2:])
            ids = [np.asarray(side, np.int64) for side in (prompt, *kept)]
            gold = ids[3] if len(ids) > 3 else None
            yield TokenPair(text.row.id, ids[0], ids[1], ids[2], dict(text.row.columns), gold=gold)


def _refuse_losses(rows: int, kept: int, tally: _Tally, limit: int, most_lost: float) -> None:
    lost = tally.dropped[_LONG]
    if lost > most_lost * rows:
        which = f"all {rows:,} rows" if lost == rows else f"{lost:,} of {rows:,} rows ({lost / rows:.0%})"
        raise UserError(
            f"{which}: prompt > max_prompt_tokens {limit} (shortest prompt {min(tally.lengths)} tokens, "
            f"longest {max(tally.lengths)}); at most {most_lost:.0%} may be lost: "
            "raise --set recipe.max_prompt_tokens, or allow more with --set data.most_lost"
        )
    if tally.refusal is not None and tally.dropped[_REFUSED] > most_lost * rows:
        raise UserError(f"{tally.dropped[_REFUSED]:,} of {rows:,} rows: {refused(tally.refusal)}") from tally.refusal
    if rows and not kept:
        reasons = ", ".join(f"{reason}: {count:,}" for reason, count in tally.dropped.items())
        raise UserError(
            f"all {rows:,} rows are lost in tokenisation ({reasons}); raise --set recipe.max_tokens, or mend the rows"
        )


def _report(
    pairs: Sequence[TokenPair], rows: int, tally: _Tally, writer: Writer, limits: Mapping[str, int]
) -> TokenReport:
    lengths = {side: [len(getattr(pair, side)) for pair in pairs] for side in ("prompt", "chosen", "rejected")}
    golds = [len(pair.gold) for pair in pairs if pair.gold is not None]
    total = sum(pair.size for pair in pairs)
    return TokenReport(
        rows=rows,
        kept=len(pairs),
        dropped=dict(tally.dropped),
        dropped_rows={reason: tuple(first) for reason, first in tally.dropped_rows.items()},
        cut_answers=tally.cut_answers,
        cut_pairs=tally.cut_pairs,
        cut_golds=tally.cut_golds,
        neutralised=tally.neutralised,
        tokens={side: _quantiles(values) for side, values in (lengths | ({"gold": golds} if golds else {})).items()},
        total=total,
        shared=2 * sum(lengths["prompt"]) / total if total else 0.0,
        template={"name": writer.template.name, "hash": writer.template.hash},
        limits=limits,
    )


def _quantiles(values: Sequence[int]) -> dict[str, float]:
    if not values:
        return {}
    names = {"min": 0.0, "median": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
    return {name: float(np.quantile(values, q)) for name, q in names.items()}
