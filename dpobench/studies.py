"""Studies: what of an experiment is changed, one thing at a time, and what becomes of the training pairs of a run for it."""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from dpobench.errors import UserError
from dpobench.tokens import TokenPair

Condition = Mapping[str, Any]
NOISE, SIZE, QUALITY, ROUND = "label_noise", "train_size", "reference_quality", "round"
# Tried where the study is asked for without values.
QUALITIES = (0.1, 0.3)
# A column that speaks of the chosen answer against the other: turned round it is the other's chance.
_PROBABILITY = "win_probability"
_SIDES = ("chosen", "rejected")


class Studies(BaseModel):
    """What is changed beside the experiment proper. Studies are not crossed: every value is one condition of its own.

    Args:
        label_noise: shares of the training pairs whose label is turned round; 0 is the experiment proper.
        train_size: numbers of training pairs; all of them are the experiment proper.
        reference_quality: shares of the embedded base model's training steps; 1 is the experiment proper.
        rounds: of preference optimisation: from the second on, each starts from the policy of the one before and trains on
            that policy's own answers as the judge ranks them.
        answers: that the policy gives to each training prompt before a further round; a judge that scores one answer at a time
            has the best and the worst of them compared.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    label_noise: tuple[Annotated[float, Field(ge=0, le=1)], ...] = ()
    train_size: tuple[Annotated[int, Field(ge=1)], ...] = ()
    reference_quality: tuple[Annotated[float, Field(gt=0, le=1)], ...] = ()
    rounds: int = Field(1, ge=1, le=50)
    answers: int = Field(2, ge=2)

    def conditions(self, pairs: int | None = None) -> list[dict[str, Any]]:
        """What is trained beside the experiment proper, the rounds left out, because they follow one another.

        Args:
            pairs: number of training pairs, where it is known; that size is the experiment proper.
        """
        found: list[dict[str, Any]] = [{NOISE: share} for share in self.label_noise if share > 0]
        found += [{SIZE: size} for size in self.train_size if size != pairs]
        return found + [{QUALITY: share} for share in self.reference_quality if share < 1]

    @property
    def later_rounds(self) -> range:
        """Numbers of the rounds after the first, which is the experiment proper."""
        return range(2, self.rounds + 1)

    def check(self, batch: int) -> None:
        """Refuse what no data could mend.

        Raises:
            UserError: a value named twice, or fewer training pairs than a batch holds.
        """
        for name in (NOISE, SIZE, QUALITY):
            values = getattr(self, name)
            if twice := [value for value in values if values.count(value) > 1]:
                raise UserError(f"studies.{name}: {twice[0]} is named twice")
        if small := [size for size in self.train_size if size < batch]:
            raise UserError(
                f"studies.train_size = {small[0]}, but recipe.batch = {batch}; choose more pairs or a smaller batch"
            )

    def check_size(self, pairs: int) -> None:
        """Refuse more training pairs than there are.

        Raises:
            UserError: a size is above the number of training pairs.
        """
        if large := [size for size in self.train_size if size > pairs]:
            raise UserError(
                f"studies.train_size = {large[0]:,}, but there are {pairs:,} training pairs; choose {pairs:,} at most"
            )


def describe(condition: Condition) -> str:
    """A condition in a few words; nothing for the experiment proper."""
    return " ".join(
        f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}" for name, value in condition.items()
    )


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
