"""Training pairs as a study changes them: fewer pairs, or flipped labels."""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from dpobench.artifacts.records import Condition
from dpobench.data.tokens import TokenPair

# Probability that the chosen answer wins against the other: after a flip it is that of the other, one minus it.
_PROBABILITY = "win_probability"
_SIDES = ("chosen", "rejected")


def apply_condition(
    pairs: Sequence[TokenPair], condition: Condition, seed: int
) -> tuple[list[TokenPair], dict[str, int]]:
    """The training pairs under a condition. Held-out pairs never pass through here.

    Args:
        pairs: training pairs, with everything that was prepared for the loss.
        condition: of the run. `label_noise` is the share of labels to flip, `train_size` a number of pairs; others are ignored.
        seed: of the run: each seed flips, or takes, other pairs.

    Returns: the pairs, and their counts: `pairs`, and `flipped` where labels may be flipped.

    Example:
        >>> apply_condition([], Condition(label_noise=0.1), seed=0)
        ([], {'pairs': 0, 'flipped': 0})
    """
    subset = list(pairs) if condition.train_size is None else take_subset(pairs, condition.train_size, seed)
    if condition.label_noise is None:
        return subset, {"pairs": len(subset)}
    to_flip = set(hash_order(subset, "flip", seed)[: round(condition.label_noise * len(subset))])
    noisy = [flipped(pair) if place in to_flip else pair for place, pair in enumerate(subset)]
    return noisy, {"pairs": len(noisy), "flipped": len(to_flip)}


def take_subset(pairs: Sequence[TokenPair], size: int, seed: int) -> list[TokenPair]:
    """The first `size` pairs by hash, in their given order; a smaller subset lies within every larger one of the same seed."""
    return [pairs[place] for place in sorted(hash_order(pairs, "size", seed)[:size])]


def hash_order(pairs: Sequence[TokenPair], purpose: str, seed: int) -> list[int]:
    """Indices of the pairs in an order that depends on purpose, seed and ids alone; pairs of equal id keep their order."""
    keys = [hashlib.sha256(f"{purpose}:{seed}:{pair.id}".encode()).digest() for pair in pairs]
    return sorted(range(len(pairs)), key=lambda place: (keys[place], place))


def flipped(pair: TokenPair) -> TokenPair:
    """The pair with the opposite label: chosen and rejected change places, with everything that belongs to each."""
    return replace(
        pair,
        chosen=pair.rejected,
        rejected=pair.chosen,
        chosen_reference=pair.rejected_reference,
        rejected_reference=pair.chosen_reference,
        columns=flipped_columns(pair.columns),
        extras={name: (rejected, chosen) for name, (chosen, rejected) in pair.extras.items()},
        mismatched=None if pair.mismatched is None else flipped(pair.mismatched),
    )


def flipped_columns(columns: Mapping[str, float]) -> dict[str, float]:
    """Columns of a flipped pair: the values of the two sides change places, and `win_probability` becomes one minus itself.

    Every other column belongs to the pair as a whole and stays.

    Example:
        >>> flipped_columns({"score_chosen": 3.0, "score_rejected": 1.0, "win_probability": 0.75, "weight": 2.0})
        {'score_chosen': 1.0, 'score_rejected': 3.0, 'win_probability': 0.25, 'weight': 2.0}
    """
    exchanged = {name: columns[_opposite(name, columns) or name] for name in columns}
    return exchanged | ({_PROBABILITY: 1 - columns[_PROBABILITY]} if _PROBABILITY in columns else {})


def columns_of_the_pair(columns: Collection[str]) -> list[str]:
    """Columns that stay the same when a label is flipped, because they belong to neither side.

    Example:
        >>> columns_of_the_pair(["score_chosen", "score_rejected", "win_probability", "confidence"])
        ['confidence']
    """
    return [name for name in columns if name != _PROBABILITY and _opposite(name, columns) is None]


def _opposite(name: str, columns: Collection[str]) -> str | None:
    """The column of the other side, where there is one: `score_rejected` for `score_chosen`."""
    for side, other_side in (_SIDES, _SIDES[::-1]):
        for end in (f"_{side}", f"{side}_"):
            stem = name.removesuffix(end) if end.startswith("_") else name.removeprefix(end)
            opposite = f"{stem}_{other_side}" if end.startswith("_") else f"{other_side}_{stem}"
            if stem != name and opposite in columns:
                return opposite
    return None
