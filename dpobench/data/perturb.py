"""Training pairs as a study changes them: fewer, or with flipped labels."""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from dpobench.data.tokens import TokenPair

Condition = Mapping[str, Any]
NOISE, SIZE = "label_noise", "train_size"
# A column that speaks of the chosen answer against the other: turned round it is the other's chance.
_PROBABILITY = "win_probability"
_SIDES = ("chosen", "rejected")


def treated(pairs: Sequence[TokenPair], condition: Condition, seed: int) -> tuple[list[TokenPair], dict[str, int]]:
    """The training pairs as a condition has them; held-out pairs are never given to this.

    Args:
        pairs: training pairs, with all that was prepared for the loss.
        condition: of the run.
        seed: of the run: every seed turns round, or takes, pairs of its own.

    Returns: the pairs, and how many there are and, where labels were turned round, how many were.
    """
    kept = first(pairs, condition[SIZE], seed) if SIZE in condition else list(pairs)
    if NOISE not in condition:
        return kept, {"pairs": len(kept)}
    chosen = set(by_hash(kept, "flip", seed)[: round(condition[NOISE] * len(kept))])
    found = [turned(pair) if place in chosen else pair for place, pair in enumerate(kept)]
    return found, {"pairs": len(found), "flipped": len(chosen)}


def first(pairs: Sequence[TokenPair], size: int, seed: int) -> list[TokenPair]:
    """So many pairs, in the order they had: the first by hash, so that a smaller number is a part of a larger one."""
    return [pairs[place] for place in sorted(by_hash(pairs, "size", seed)[:size])]


def by_hash(pairs: Sequence[TokenPair], what: str, seed: int) -> list[int]:
    """Places of the pairs in an order that depends on the seed and their ids alone; rows that are alike keep theirs."""
    keys = [hashlib.sha256(f"{what}:{seed}:{pair.id}".encode()).digest() for pair in pairs]
    return sorted(range(len(pairs)), key=lambda place: (keys[place], place))


def turned(pair: TokenPair) -> TokenPair:
    """The pair with the other label: both sides change places, with all that belongs to them."""
    return replace(
        pair,
        chosen=pair.rejected,
        rejected=pair.chosen,
        chosen_reference=pair.rejected_reference,
        rejected_reference=pair.chosen_reference,
        columns=turned_columns(pair.columns),
        extras={name: (rejected, chosen) for name, (chosen, rejected) in pair.extras.items()},
        mismatched=None if pair.mismatched is None else turned(pair.mismatched),
    )


def turned_columns(columns: Mapping[str, float]) -> dict[str, float]:
    """Columns of a pair whose sides changed places: `score_chosen` and `score_rejected` do too, `win_probability` is one less it.

    Whatever else there is belongs to the pair as a whole and stays.
    """
    found = {name: columns[_other(name, columns) or name] for name in columns}
    return found | ({_PROBABILITY: 1 - columns[_PROBABILITY]} if _PROBABILITY in columns else {})


def unsided(columns: Collection[str]) -> list[str]:
    """Columns that stay as they are when a label is turned round."""
    return [name for name in columns if name != _PROBABILITY and _other(name, columns) is None]


def _other(name: str, columns: Collection[str]) -> str | None:
    """The same column of the other side, where there is one."""
    for here, there in (_SIDES, _SIDES[::-1]):
        for end in (f"_{here}", f"{here}_"):
            kept = name.removesuffix(end) if end.startswith("_") else name.removeprefix(end)
            other = f"{kept}_{there}" if end.startswith("_") else f"{there}_{kept}"
            if kept != name and other in columns:
                return other
    return None
