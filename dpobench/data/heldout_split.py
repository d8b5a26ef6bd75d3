"""Rows to train on, rows to score on: divided by prompt, so that no held-out prompt was ever trained on."""

import hashlib
from collections.abc import Sequence

from dpobench.data.overlap import normalised, overlaps, question
from dpobench.data.rows import Preference
from dpobench.errors import UserError


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
