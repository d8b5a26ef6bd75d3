"""Division into training and held-out rows, and overlap of the two: equal prompts, or a shared run of thirteen words."""

import hashlib
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from dpobench.data.rows import Message, Preference
from dpobench.errors import UserError

_WORD = re.compile(r"\w+")
# A run of words that so many training prompts share is a form ("Summarise the following article ..."), not a leak.
_FORM_PROMPTS, _FORM_SHARE = 10, 0.01


@dataclass(frozen=True)
class Overlap:
    """A held-out text whose words are in a training text.

    Args:
        heldout: index of the held-out text.
        training: index of the first training text that it overlaps with.
        kind: "exact" (the same words) or "n-gram" (a run of words).
        text: the words they share, at most 13.
    """

    heldout: int
    training: int
    kind: Literal["exact", "n-gram"]
    text: str


def normalised(text: str) -> str:
    r"""A text as compared: NFKC, case folded, words only. Text without a single word stays as it is, white space apart.

    Scripts without blanks between words are compared by whole runs of letters: a paraphrase goes undetected.

    Example:
        >>> normalised("WHAT is\nthe first -- word?")
        'what is the first word'
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(_WORD.findall(folded)) or " ".join(folded.split())


def question(messages: Sequence[Message]) -> str:
    r"""The contents of all turns but the system's, which many prompts share.

    Example:
        >>> question([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}])
        'Why?'
    """
    return "\n".join(turn["content"] for turn in messages if turn["role"] != "system")


def overlaps(heldout: Sequence[str], training: Sequence[str], *, words: int = 13) -> list[Overlap]:
    """Which held-out texts overlap with training texts, at most one overlap each.

    A run of words that more than 10 training texts share, and more than 1 % of them, is a form and no overlap.

    Args:
        heldout: texts to score on.
        training: texts to train on.
        words: length of the run of words that counts as overlap.

    Returns:
        Overlaps, in the order of the held-out texts; an exact one is preferred.

    Example:
        >>> overlaps(["What is new?"], ["Who are you?", "what is NEW"])
        [Overlap(heldout=0, training=1, kind='exact', text='what is new')]
    """
    texts = [normalised(text) for text in heldout]
    with_run: dict[str, list[int]] = defaultdict(list)
    for index, text in enumerate(texts):
        for run in set(_runs(text, words)):
            with_run[run].append(index)
    # Each held-out text, and each run of one, with the first training text that has it.
    equal: dict[str, int] = {}
    first: dict[str, int] = {}
    distinct = set(texts)
    prompts_with: Counter[str] = Counter()
    for index, text in enumerate(map(normalised, training)):
        if text in distinct:
            equal.setdefault(text, index)
        for run in {run for run in _runs(text, words) if run in with_run}:
            first.setdefault(run, index)
            prompts_with[run] += 1
    form = max(_FORM_PROMPTS, _FORM_SHARE * len(training))
    shared_run: dict[int, str] = {}
    for run in sorted(first, key=lambda r: (first[r], r)):
        if prompts_with[run] <= form:
            for index in with_run[run]:
                shared_run.setdefault(index, run)
    hits = []
    for index, text in enumerate(texts):
        if text in equal:
            hits.append(Overlap(index, equal[text], "exact", " ".join(text.split()[:13])))
        elif index in shared_run:
            hits.append(Overlap(index, first[shared_run[index]], "n-gram", shared_run[index]))
    return hits


def _runs(text: str, words: int) -> Iterator[str]:
    tokens = text.split()
    return (" ".join(tokens[i : i + words]) for i in range(len(tokens) - words + 1))


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
    position = {key: _position(key, seed) for key in set(keys)}
    if len(position) < 2:
        raise UserError(
            f"{len(rows)} rows ask {len(position)} distinct question(s): at least 2 are needed to hold one out"
        )
    in_order = sorted(position, key=lambda key: (position[key], key))
    # Neither side may be empty, however small the share.
    held_out = {key for key in in_order[:-1] if position[key] < share} or {in_order[0]}
    train = [row for row, key in zip(rows, keys, strict=True) if key not in held_out]
    heldout = [row for row, key in zip(rows, keys, strict=True) if key in held_out]
    hits = overlapping((row.prompt for row in heldout), (row.prompt for row in train))
    clean = [row for index, row in enumerate(heldout) if index not in hits]
    if not clean:
        raise UserError(
            f"all {len(heldout)} held-out rows share a run of 13 words with a training prompt; hold out more than {share:g}"
        )
    return train, clean


def overlapping(heldout: Iterable[Sequence[Message]], training: Iterable[Sequence[Message]]) -> set[int]:
    """Indices of the held-out prompts that overlap with a training prompt, system turns left out; see `overlaps`."""
    hits = overlaps([question(prompt) for prompt in heldout], [question(prompt) for prompt in training])
    return {hit.heldout for hit in hits}


def _position(key: str, seed: int) -> float:
    """Where a prompt lies in [0, 1): it is held out if that is below the share."""
    hashed = hashlib.sha256(f"hold-out:{seed}:{key}".encode()).digest()
    return int.from_bytes(hashed[:8], "big") / 2**64
