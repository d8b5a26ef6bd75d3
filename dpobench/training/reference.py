"""What the reference says of pairs, beside them and before any training; and a reference that moves."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save

from dpobench.artifacts.files import write_bytes
from dpobench.data.tokens import TokenPair, read_pairs
from dpobench.errors import UserError
from dpobench.losses.quantities import NEEDS, Need
from dpobench.losses.variant import Variant
from dpobench.models.logprobs import completion_quantity, per_sequence, score_sequences
from dpobench.plugins.plugin import Interval

# Files of a folder of training pairs, and of one with a quantity of the reference.
PAIRS, EXTRA = "pairs.parquet", "values.safetensors"
Values = list[np.ndarray]


def scored(model: Any, pairs: Sequence[TokenPair], needs: Sequence[str] = (), budget: int = 8192) -> list[TokenPair]:
    """The pairs with everything that is computed from the reference alone.

    Args:
        model: the reference.
        pairs: tokenised pairs; mismatched completions, where they are there, are scored too.
        needs: what the losses declared; names of `dpobench.losses.quantities`.
        budget: most tokens of a padded batch.

    Returns: pairs with log-probabilities, and an extra for each need that is a quantity of the reference.
    """
    found = [
        pair.with_reference(*sides)
        for pair, sides in zip(pairs, _by_side(pairs, lambda rows: score_sequences(model, rows, budget)), strict=True)
    ]
    for need in [NEEDS[name] for name in needs if NEEDS[name].source == "reference"]:
        values = extra(model, need, pairs, budget)
        found = [with_extra(pair, need.name, sides) for pair, sides in zip(found, values, strict=True)]
    crossed = [pair.mismatched for pair in pairs if pair.mismatched is not None]
    if crossed and "mismatched" in needs:
        told = scored(model, crossed, budget=budget)
        found = [replace(pair, mismatched=other) for pair, other in zip(found, told, strict=True)]
    return found


def extra(
    model: Any, need: Need, pairs: Sequence[TokenPair], budget: int = 8192
) -> list[tuple[np.ndarray, np.ndarray]]:
    """A quantity of the reference's next-token distribution at every completion token: chosen, rejected."""
    return _by_side(pairs, lambda rows: _quantity(model, need, rows, budget))


def with_extra(pair: TokenPair, name: str, sides: tuple[np.ndarray, np.ndarray]) -> TokenPair:
    """The pair with one more constant per token."""
    return replace(pair, extras={**pair.extras, name: sides})


def _by_side(
    pairs: Sequence[TokenPair], score: Callable[[Sequence[Any]], Values]
) -> list[tuple[np.ndarray, np.ndarray]]:
    found = score([(pair.prompt, ids) for pair in pairs for ids in (pair.chosen, pair.rejected)])
    return list(zip(found[::2], found[1::2], strict=True))


def _quantity(model: Any, need: Need, sequences: Sequence[Any], budget: int) -> Values:
    return per_sequence(model, sequences, lambda batch: completion_quantity(model, batch, need), budget)


def write_extra(path: Path, values: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
    """Write a constant per token, side after side; the pairs' own lengths tell where one ends."""
    sides = {name: np.concatenate([pair[side] for pair in values]) for side, name in enumerate(("chosen", "rejected"))}
    write_bytes(path, save(sides))


def read_extra(path: Path, pairs: Sequence[TokenPair]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Read what `write_extra` wrote of the same pairs."""
    stored = load_file(path)
    sides = [
        np.split(stored[name], np.cumsum([len(getattr(pair, name)) for pair in pairs])[:-1])
        for name in ("chosen", "rejected")
    ]
    return list(zip(*sides, strict=True))


def completed(pairs: Sequence[TokenPair], needs: Mapping[str, Path]) -> list[TokenPair]:
    """The training pairs with what was prepared for a loss's needs.

    Args:
        pairs: the training pairs.
        needs: folder of each prepared need.
    """
    found = list(pairs)
    for name, folder in needs.items():
        if NEEDS[name].source == "pairs":
            others = read_pairs(folder / PAIRS)
            found = [replace(pair, mismatched=other) for pair, other in zip(found, others, strict=True)]
        else:
            values = read_extra(folder / EXTRA, pairs)
            found = [with_extra(pair, name, sides) for pair, sides in zip(found, values, strict=True)]
    return found


def mismatched(pairs: Sequence[TokenPair], max_tokens: int) -> list[TokenPair]:
    """Every prompt with the completions of another prompt: a derangement fixed by the pairs themselves.

    Pairs of one prompt stand together in a seeded order, which is turned by the size of the largest such group: no prompt meets an
    answer of its own, and each completion is used once.

    Args:
        pairs: the training pairs.
        max_tokens: of prompt and completion together; longer completions are cut.

    Returns: one pair per pair, without the reference's log-probabilities; empty if one prompt has more than half the pairs.
    """
    prompts = [pair.prompt.tobytes() for pair in pairs]
    place = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
    shuffled = np.random.default_rng(0).permutation(len(place))
    order = sorted(range(len(pairs)), key=lambda i: (shuffled[place[prompts[i]]], i))
    turn = int(np.bincount([place[prompt] for prompt in prompts]).max())
    if 2 * turn > len(pairs):
        return []
    found: list[TokenPair | None] = [None] * len(pairs)
    for here, there in zip(order, order[turn:] + order[:turn], strict=True):
        pair, other = pairs[here], pairs[there]
        room = max_tokens - len(pair.prompt)
        found[here] = TokenPair(pair.id, pair.prompt, other.chosen[:room], other.rejected[:room])
    return [pair for pair in found if pair is not None]


def beyond_pairs(loss: Variant) -> list[str]:
    """What of the data set a loss reads beside prompts, chosen and rejected answers."""
    return [*loss.columns, *(name for name in loss.needs if NEEDS[name].source == "data")]


def check_pairs(losses: Iterable[Variant], pairs: Sequence[TokenPair]) -> None:
    """Refuse losses that read what the training pairs do not have.

    Raises:
        UserError: with every such loss, the column, how many pairs lack it and what to do.
    """
    said: list[str] = []
    for loss in losses:
        for name, allowed in loss.columns.items():
            said += _column(name, allowed, loss.name, pairs)
        if "gold" in loss.needs and (bare := [pair.id for pair in pairs if pair.gold is None]):
            said.append(f"{loss.name} needs a gold answer, but {_lacking(bare, pairs, 'have none', 'gold')}")
        if "mismatched" in loss.needs and not mismatched(pairs, 1):
            said.append(
                f"{loss.name} pairs every prompt with another one's answers, but one prompt has more than half the training pairs; "
                "train on more prompts"
            )
    if said:
        raise UserError("; ".join(said) + "; or leave these variants out")


def _column(name: str, allowed: Interval, loss: str, pairs: Sequence[TokenPair]) -> Iterator[str]:
    bare = [pair.id for pair in pairs if name not in pair.columns]
    wrong = [pair for pair in pairs if name in pair.columns and pair.columns[name] not in allowed]
    if bare:
        yield f"{loss} reads the column {name!r}, but {_lacking(bare, pairs, f'have no number {name!r}', name)}"
    if wrong:
        first = ", ".join(f"{pair.columns[name]!r} in pair {pair.id}" for pair in wrong[:3])
        of = f"{len(wrong):,} of {len(pairs):,} training pairs"
        yield f"{loss} reads {name!r} in {allowed.text}, but {of} have others ({first}); mend them"


def _lacking(bare: Sequence[str], pairs: Sequence[TokenPair], what: str, column: str) -> str:
    """Where all pairs lack it, another column has it; where some do, these are to be mended."""
    mend = (
        f"name the column with --set data.columns.{column}=COLUMN" if len(bare) == len(pairs) else "mend or drop these"
    )
    first = "" if len(bare) == len(pairs) else f" (first {', '.join(bare[:3])})"
    return f"{len(bare):,} of {len(pairs):,} training pairs {what}{first}; {mend}"


def with_noise(rows: Sequence[TokenPair], seed: int, step: int) -> list[TokenPair]:
    """The pairs of a step with a uniform number for every token, a pure function of seed, step and place."""
    draw = np.random.default_rng([seed, step, 1])
    # Never 0 nor 1, in float32 either: losses take logarithms of it.
    least = 2.0**-24

    def numbers(ids: np.ndarray) -> np.ndarray:
        return draw.random(len(ids)).clip(least, 1 - least).astype(np.float32)

    return [with_extra(row, "noise", (numbers(row.chosen), numbers(row.rejected))) for row in rows]


@torch.no_grad()
def move(reference: Any, policy: Any, mix: float) -> None:
    """Move the reference's weights towards the policy's: `mix` of the policy, the rest stays."""
    for name, weight in reference.named_parameters():
        weight.lerp_(policy.get_parameter(name).detach().to(weight.dtype), mix)
