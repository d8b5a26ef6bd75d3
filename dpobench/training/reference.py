"""What is computed from the reference and from the other pairs before any training; and a reference that moves."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save

from dpobench.artifacts.files import write_bytes
from dpobench.data.tokens import Ids, Logps, TokenPair, read_pairs
from dpobench.errors import UserError
from dpobench.losses.quantities import NEEDS, Need
from dpobench.losses.variant import Variant
from dpobench.models.logprobs import completion_quantity, per_sequence, score_sequences
from dpobench.models.protocols import CausalLM
from dpobench.plugins.plugin import Interval

# Files of a folder of training pairs, and of one with a quantity of the reference.
PAIRS, EXTRA = "pairs.parquet", "values.safetensors"
# One value per completion token: chosen, rejected.
BySide = tuple[Logps, Logps]


def score_pairs(
    model: CausalLM, pairs: Sequence[TokenPair], needs: Sequence[str] = (), budget: int = 8192
) -> list[TokenPair]:
    """The pairs with everything that is computed from the reference alone.

    Args:
        model: the reference.
        pairs: tokenised pairs; mismatched completions, where they are there, are scored too.
        needs: what the losses declared; names of `dpobench.losses.quantities`.
        budget: most tokens of a padded batch.

    Returns: pairs with log-probabilities (nats a token), and an extra for each need that is a quantity of the reference.
    """
    logps = _by_side(pairs, lambda sequences: score_sequences(model, sequences, budget))
    scored = [pair.with_reference(*sides) for pair, sides in zip(pairs, logps, strict=True)]
    for need in [NEEDS[name] for name in needs if NEEDS[name].source == "reference"]:
        values = reference_quantity(model, need, pairs, budget)
        scored = [with_extra(pair, need.name, sides) for pair, sides in zip(scored, values, strict=True)]
    others = [pair.mismatched for pair in pairs if pair.mismatched is not None]
    if others and "mismatched" in needs:
        scored_others = score_pairs(model, others, budget=budget)
        scored = [replace(pair, mismatched=other) for pair, other in zip(scored, scored_others, strict=True)]
    return scored


def reference_quantity(model: CausalLM, need: Need, pairs: Sequence[TokenPair], budget: int = 8192) -> list[BySide]:
    """A quantity of the reference's next-token distribution at every completion token.

    Args:
        model: the reference.
        need: the quantity.
        pairs: tokenised pairs.
        budget: most tokens of a padded batch.

    Returns: of every pair the values of the chosen tokens and of the rejected.
    """

    def values(sequences: Sequence[tuple[Ids, Ids]]) -> list[Logps]:
        return per_sequence(model, sequences, lambda batch: completion_quantity(model, batch, need), budget)

    return _by_side(pairs, values)


def with_extra(pair: TokenPair, name: str, sides: BySide) -> TokenPair:
    """The pair with one more constant per token."""
    return replace(pair, extras={**pair.extras, name: sides})


def _by_side(pairs: Sequence[TokenPair], score: Callable[[Sequence[tuple[Ids, Ids]]], list[Logps]]) -> list[BySide]:
    values = score([(pair.prompt, ids) for pair in pairs for ids in (pair.chosen, pair.rejected)])
    return list(zip(values[::2], values[1::2], strict=True))


def write_extra(path: Path, values: Sequence[BySide]) -> None:
    """Write a constant per token, side after side; the pairs' lengths say where one ends."""
    sides = {name: np.concatenate([pair[side] for pair in values]) for side, name in enumerate(("chosen", "rejected"))}
    write_bytes(path, save(sides))


def read_extra(path: Path, pairs: Sequence[TokenPair]) -> list[BySide]:
    """Read what `write_extra` wrote of the same pairs."""
    stored = load_file(path)
    chosen, rejected = (
        np.split(stored[name], np.cumsum([len(getattr(pair, name)) for pair in pairs])[:-1])
        for name in ("chosen", "rejected")
    )
    return list(zip(chosen, rejected, strict=True))


def with_needs(pairs: Sequence[TokenPair], needs: Mapping[str, Path]) -> list[TokenPair]:
    """The training pairs with what was prepared for a loss's needs.

    Args:
        pairs: the training pairs.
        needs: folder of each prepared need.
    """
    complete = list(pairs)
    for name, folder in needs.items():
        if NEEDS[name].source == "pairs":
            others = read_pairs(folder / PAIRS)
            complete = [replace(pair, mismatched=other) for pair, other in zip(complete, others, strict=True)]
        else:
            values = read_extra(folder / EXTRA, pairs)
            complete = [with_extra(pair, name, sides) for pair, sides in zip(complete, values, strict=True)]
    return complete


def mismatched(pairs: Sequence[TokenPair], max_tokens: int) -> list[TokenPair]:
    """Every prompt with the completions of another prompt: a derangement fixed by the pairs themselves.

    Pairs of one prompt stand together in a seeded order, which is rotated by the size of the largest such group: no prompt meets an
    answer to itself, and each completion is used once.

    Args:
        pairs: the training pairs.
        max_tokens: of prompt and completion together; longer completions are cut.

    Returns: one pair per pair, without the reference's log-probabilities; empty if one prompt has more than half the pairs.
    """
    prompts = [pair.prompt.tobytes() for pair in pairs]
    place = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
    shuffled = np.random.default_rng(0).permutation(len(place))
    order = sorted(range(len(pairs)), key=lambda i: (shuffled[place[prompts[i]]], i))
    shift = int(np.bincount([place[prompt] for prompt in prompts]).max())
    if 2 * shift > len(pairs):
        return []
    crossed = {}
    for here, there in zip(order, order[shift:] + order[:shift], strict=True):
        pair, other = pairs[here], pairs[there]
        room = max_tokens - len(pair.prompt)
        crossed[here] = TokenPair(pair.id, pair.prompt, other.chosen[:room], other.rejected[:room])
    return [crossed[number] for number in range(len(pairs))]


def beyond_pairs(loss: Variant) -> list[str]:
    """What of the data set a loss reads besides prompts, chosen and rejected answers."""
    return [*loss.columns, *(name for name in loss.needs if NEEDS[name].source == "data")]


def check_pairs(losses: Iterable[Variant], pairs: Sequence[TokenPair]) -> None:
    """Refuse losses that read what the training pairs do not have.

    Raises:
        UserError: with every such loss, the column, how many pairs lack it and what to do.
    """
    problems: list[str] = []
    for loss in losses:
        for name, allowed in loss.columns.items():
            problems += _column_problems(name, allowed, loss.name, pairs)
        if "gold" in loss.needs and (without := [pair.id for pair in pairs if pair.gold is None]):
            problems.append(f"{loss.name} needs a gold answer, but {_lacking(without, pairs, 'have none', 'gold')}")
        if "mismatched" in loss.needs and not mismatched(pairs, 1):
            problems.append(
                f"{loss.name} pairs every prompt with another one's answers, but one prompt has more than half the training pairs; "
                "train on more prompts"
            )
    if problems:
        raise UserError("; ".join(problems) + "; or leave these variants out")


def _column_problems(name: str, allowed: Interval, loss: str, pairs: Sequence[TokenPair]) -> Iterator[str]:
    without = [pair.id for pair in pairs if name not in pair.columns]
    outside = [pair for pair in pairs if name in pair.columns and pair.columns[name] not in allowed]
    if without:
        yield f"{loss} reads the column {name!r}, but {_lacking(without, pairs, f'have no number {name!r}', name)}"
    if outside:
        examples = ", ".join(f"{pair.columns[name]!r} in pair {pair.id}" for pair in outside[:3])
        count = f"{len(outside):,} of {len(pairs):,} training pairs"
        yield f"{loss} reads {name!r} in {allowed.text}, but {count} have others ({examples}); mend them"


def _lacking(without: Sequence[str], pairs: Sequence[TokenPair], what: str, column: str) -> str:
    """Where all pairs lack it, another column has it; where some do, these are to be mended."""
    count = f"{len(without):,} of {len(pairs):,} training pairs {what}"
    if len(without) == len(pairs):
        return f"{count}; name the column with --set data.columns.{column}=COLUMN"
    return f"{count} (first {', '.join(without[:3])}); mend or drop these"


def with_noise(rows: Sequence[TokenPair], seed: int, step: int) -> list[TokenPair]:
    """The pairs of a step with a uniform number in (0, 1) for every token, a pure function of seed, step and place."""
    draw = np.random.default_rng([seed, step, 1])
    # Never 0 nor 1, in float32 either: losses take logarithms of it.
    least = 2.0**-24

    def uniform(ids: Ids) -> Logps:
        return draw.random(len(ids)).clip(least, 1 - least).astype(np.float32)

    return [with_extra(row, "noise", (uniform(row.chosen), uniform(row.rejected))) for row in rows]


@torch.no_grad()
def move(reference: CausalLM, policy: CausalLM, mix: float) -> None:
    """Move the reference's weights towards the policy's: `mix` of the policy, the rest stays."""
    for name, weight in reference.named_parameters():
        weight.lerp_(policy.get_parameter(name).detach().to(weight.dtype), mix)
