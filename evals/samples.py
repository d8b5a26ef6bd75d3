"""What the answers look like: length, end, repetition, diversity, entropy. Counted on tokens, so that every language counts alike."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from torch import Tensor

from dpobench import Checkpoint, HeldOut, Metric, evaluator, score_rows
from dpobench.evaluation.heldout import draw_numbers, pair_prompts
from dpobench.models.logprobs import Batch, completion_hidden, head_of, per_sequence
from dpobench.models.protocols import CausalLM


@evaluator(
    metrics={
        "length": Metric("tokens", "none", "length", "answer length"),
        "words": Metric("words", "none", label="answer length in words"),
        "ended": Metric("share", "higher", label="answers that ended"),
        "repetition": Metric("share", "lower", label="repeated 4-grams"),
        "distinct_1": Metric("share", "none", label="distinct tokens"),
        "distinct_2": Metric("share", "none", label="distinct 2-grams"),
        "entropy": Metric("nats per token", "none", label="entropy of the next token"),
        "chosen_length": Metric("tokens", "none", label="length of the data's chosen answer"),
    },
    within=True,
)
def samples(checkpoint: Checkpoint, held_out: HeldOut, *, entropies: int = 256, budget: int = 8192) -> pd.DataFrame:
    """Length, end, repetition, diversity and entropy of every answer.

    Args:
        checkpoint: whose answers these are.
        held_out: the answers; held-out pairs, where there are any.
        entropies: answers whose entropy is computed, the first by prompt; 0 skips the pass over the model.
        budget: most tokens of a padded batch of that pass.

    Returns: one row per sample and metric: `length` in tokens and `words` between white space, the end token not counted;
        `ended` (1 if the end token was drawn); `repetition`, the share of 4-grams of tokens that occurred before in the
        answer, in [0, 1); `distinct_1` and `distinct_2`, different n-grams over all n-grams, in (0, 1], without a row for an answer
        that has none; `entropy`, nats, the mean over the answer's positions, the end token's counted, of the entropy of the policy's
        next token, exact over the vocabulary. For the reference also `chosen_length`: tokens of each held-out pair's chosen answer,
        one row per pair. None of them has a known value for the reference: it is the number to compare with.
    """
    frame = held_out.samples
    ended = frame["ended"].to_numpy(dtype=bool)
    tokens = [list(ids)[: len(ids) - int(end)] for ids, end in zip(frame["token_ids"], ended, strict=True)]
    values = {
        "length": [len(ids) for ids in tokens],
        "words": [len(text.split()) for text in frame["text"]],
        "ended": ended,
        "repetition": [repetition(ids) for ids in tokens],
        "distinct_1": [distinct(ids, 1) for ids in tokens],
        "distinct_2": [distinct(ids, 2) for ids in tokens],
    }
    prompts, draws = frame["prompt"].tolist(), frame["draw"].tolist()
    tables = [score_rows(prompts, metric, numbers, draws=draws) for metric, numbers in values.items()]
    few = frame.sort_values(["prompt", "draw"], kind="stable").head(entropies)
    if len(few):
        entropy = _entropies(checkpoint.policy, few, held_out, budget)
        tables.append(score_rows(few["prompt"].tolist(), "entropy", entropy, draws=few["draw"].tolist()))
    if checkpoint.is_reference and held_out.pairs:
        tables.append(_chosen_lengths(held_out))
    return pd.concat(tables, ignore_index=True).dropna(subset="value", ignore_index=True)


def _entropies(policy: CausalLM, frame: pd.DataFrame, held_out: HeldOut, budget: int) -> list[float]:
    """Mean entropy of the policy's next token over the positions of each answer, nats."""
    prompts = held_out.prompts_by_id
    sequences = [(prompts[key].token_ids, ids) for key, ids in zip(frame["prompt"], frame["token_ids"], strict=True)]

    def entropy(table: Tensor) -> list[Tensor]:
        return [-(table.exp() * table).nan_to_num(0.0).sum(-1)]

    def compute(batch: Batch) -> Tensor:
        return batch.scatter(head_of(policy).values(entropy, completion_hidden(policy, batch))[0])

    return [float(values.mean(dtype=np.float64)) for values in per_sequence(policy, sequences, compute, budget)]


def _chosen_lengths(held_out: HeldOut) -> pd.DataFrame:
    """Tokens of the chosen answers of held-out pairs, the end token not counted; pairs of one prompt are numbered as draws."""
    drawn = held_out.reference_samples
    ends = {ids[-1] for ids, ended in zip(drawn["token_ids"], drawn["ended"], strict=True) if ended}
    ids = {tuple(prompt.token_ids): prompt.id for prompt in held_out.prompts}
    # Pairs to a prompt that no answer was drawn for have the id that held-out pairs have everywhere.
    pairs = zip(held_out.pairs, pair_prompts(held_out.pairs)[0], strict=True)
    prompts = [ids.get(tuple(pair.prompt.tolist())) or prompt for pair, prompt in pairs]
    lengths = [len(pair.chosen) - int(pair.chosen[-1] in ends) for pair in held_out.pairs]
    return score_rows(prompts, "chosen_length", lengths, draws=draw_numbers(prompts))


def distinct(tokens: Sequence[int], n: int) -> float:
    """Different n-grams over all n-grams, in (0, 1]; NaN where there are none.

    Example:
        >>> distinct([7, 8, 7, 8], 2)  # (7, 8) twice and (8, 7) once
        0.6666666666666666
    """
    grams = list(zip(*(tokens[at:] for at in range(n)), strict=False))
    return len(set(grams)) / len(grams) if grams else np.nan


def repetition(tokens: Sequence[int]) -> float:
    """Share of 4-grams that occurred before, in [0, 1); 0 for an answer of fewer than four tokens."""
    share = distinct(tokens, 4)
    return 0.0 if np.isnan(share) else 1.0 - share
