"""Held-out prompts that training prompts give away, word for word or in a run of thirteen words."""

import hashlib
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from dpobench.data.rows import Message, Preference
from dpobench.errors import UserError

_WORD = re.compile(r"\w+")
# A run of words that so many training prompts share is a form ("Summarise the following article ..."), not a leak.
_FORM_PROMPTS, _FORM_SHARE = 10, 0.01


@dataclass(frozen=True)
class Overlap:
    """A held-out prompt that training prompts contain.

    Args:
        heldout: index of the held-out prompt.
        training: index of a training prompt it overlaps with, the first found.
        kind: "exact" (the same words) or "n-gram" (a run of words).
        text: the words they share, at most 13.
    """

    heldout: int
    training: int
    kind: str
    text: str


def normalised(text: str) -> str:
    """A text as compared: NFKC, case folded, words only. Text without a single word stays as it is, white space apart.

    Scripts without blanks between words are compared by whole runs of letters: a paraphrase is not found.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(_WORD.findall(folded)) or " ".join(folded.split())


def question(messages: Sequence[Message]) -> str:
    """What is asked: the contents of all turns but the system's, which many prompts share."""
    return "\n".join(turn["content"] for turn in messages if turn["role"] != "system")


def overlaps(heldout: Sequence[str], training: Sequence[str], *, words: int = 13) -> list[Overlap]:
    """Which held-out texts stand in the training texts, at most one hit each.

    Args:
        heldout: texts to score on.
        training: texts to train on.
        words: length of the run of words that counts as overlap.

    Returns:
        Hits, in the order of the held-out texts; an exact one is preferred.
    """
    asked = [normalised(text) for text in heldout]
    exact: dict[str, int] = {}
    wanted = set(asked)
    runs = defaultdict(list)
    for index, text in enumerate(asked):
        for run in set(_runs(text, words)):
            runs[run].append(index)
    first: dict[str, int] = {}
    prompts_with: Counter[str] = Counter()
    for index, text in enumerate(map(normalised, training)):
        if text in wanted:
            exact.setdefault(text, index)
        for run in {run for run in _runs(text, words) if run in runs}:
            first.setdefault(run, index)
            prompts_with[run] += 1
    form = max(_FORM_PROMPTS, _FORM_SHARE * len(training))
    leaked: dict[int, str] = {}
    for run in sorted(first, key=lambda r: (first[r], r)):
        if prompts_with[run] <= form:
            for index in runs[run]:
                leaked.setdefault(index, run)
    return list(_hits(asked, exact, leaked, first))


def _runs(text: str, words: int) -> Iterator[str]:
    tokens = text.split()
    return (" ".join(tokens[i : i + words]) for i in range(len(tokens) - words + 1))


def _hits(
    asked: Sequence[str], exact: Mapping[str, int], leaked: Mapping[int, str], first: Mapping[str, int]
) -> Iterator[Overlap]:
    for index, text in enumerate(asked):
        if text in exact:
            yield Overlap(index, exact[text], "exact", " ".join(text.split()[:13]))
        elif index in leaked:
            yield Overlap(index, first[leaked[index]], "n-gram", leaked[index])


def hold_out(rows: Sequence[Preference], share: float, seed: int = 0) -> tuple[list[Preference], list[Preference]]:
    """Divide rows by a hash of their prompt; near-duplicates (case, punctuation, system turn) stay together.

    Which side a prompt falls on depends on its words and the seed alone, so it stays there when rows are added. Held-out
    rows that share a run of 13 words with a training prompt are left out of both sides: what is missing from
    `len(train) + len(heldout)` is their number.

    Args:
        rows: comparisons.
        share: of the prompts to hold out, in (0, 1).
        seed: another one gives another division.

    Returns:
        Training rows and held-out rows, both in their order, neither empty.

    Raises:
        UserError: the share is out of range, or one side would be empty.
    """
    if not 0 < share < 1:
        raise UserError(f"held-out share {share}: a number between 0 and 1 is expected")
    keys = [normalised(question(row.prompt)) for row in rows]
    place = {key: _place(key, seed) for key in set(keys)}
    if len(place) < 2:
        raise UserError(
            f"{len(rows)} rows ask {len(place)} distinct question(s): at least 2 are needed to hold one out"
        )
    held = {key for key, at in place.items() if at < share} or {min(place, key=lambda key: (place[key], key))}
    if len(held) == len(place):
        held.discard(max(place, key=lambda key: (place[key], key)))
    train = [row for row, key in zip(rows, keys, strict=True) if key not in held]
    heldout = [row for row, key in zip(rows, keys, strict=True) if key in held]
    given_away = {hit.heldout for hit in overlaps(*([question(r.prompt) for r in side] for side in (heldout, train)))}
    clean = [row for index, row in enumerate(heldout) if index not in given_away]
    if not clean:
        raise UserError(
            f"all {len(heldout)} held-out rows share a run of 13 words with a training prompt; hold out more than {share:g}"
        )
    return train, clean


def _place(key: str, seed: int) -> float:
    hashed = hashlib.sha256(f"hold-out:{seed}:{key}".encode()).digest()
    return int.from_bytes(hashed[:8], "big") / 2**64
