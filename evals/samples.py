"""What the answers look like: length, end, repetition, diversity. Counted on tokens, so that every language counts alike."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from dpobench import Checkpoint, HeldOut, Metric, evaluator
from dpobench.scores import rows


@evaluator(
    metrics={
        "length": Metric("tokens", "none", "length", "answer length"),
        "words": Metric("words", "none", label="answer length in words"),
        "ended": Metric("share", "higher", label="answers that ended"),
        "repetition": Metric("share", "lower", label="repeated 4-grams"),
        "distinct_1": Metric("share", "none", label="distinct tokens"),
        "distinct_2": Metric("share", "none", label="distinct 2-grams"),
    }
)
def samples(checkpoint: Checkpoint, held_out: HeldOut) -> pd.DataFrame:
    """Length, end, repetition and diversity of every answer.

    Args:
        checkpoint: whose answers these are.
        held_out: the answers.

    Returns: one row per sample and metric: `length` in tokens and `words` between white space, the end token not counted;
        `ended` (1 if the end token was drawn); `repetition`, the share of 4-grams of tokens that occurred before in the
        answer; `distinct_1` and `distinct_2`, different n-grams over all n-grams, without a row for an answer that has none.
    """
    frame = held_out.samples
    ended = frame["ended"].to_numpy(dtype=bool)
    tokens = [list(ids)[: len(ids) - int(end)] for ids, end in zip(frame["token_ids"], ended, strict=True)]
    found = {
        "length": [len(ids) for ids in tokens],
        "words": [len(text.split()) for text in frame["text"]],
        "ended": ended,
        "repetition": [repetition(ids) for ids in tokens],
        "distinct_1": [distinct(ids, 1) for ids in tokens],
        "distinct_2": [distinct(ids, 2) for ids in tokens],
    }
    tables = [
        rows(frame["prompt"].tolist(), metric, values, draws=frame["draw"].tolist()) for metric, values in found.items()
    ]
    return pd.concat(tables, ignore_index=True).dropna(subset="value", ignore_index=True)


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
