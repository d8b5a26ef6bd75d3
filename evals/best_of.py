"""What the judge must see if it sees anything: the best of several answers of the reference wins, a second draw does not."""

from collections.abc import Sequence
from math import comb
from typing import Any

import numpy as np
import pandas as pd

from dpobench import Checkpoint, DpobenchError, HeldOut, Metric, Prompt, evaluator, score_rows
from dpobench.artifacts.scores import COLUMNS


@evaluator(
    metrics={
        "best_of_win_rate": Metric("share", "higher", label="win-rate of the best of k"),
        "best_of_reward": Metric("reward", "higher", label="reward of the best of k"),
        "same_win_rate": Metric("share", "none", label="win-rate of the reference against itself"),
    },
    needs=("judge", "pool"),
    reference_only=True,
)
def best_of(checkpoint: Checkpoint, held_out: HeldOut) -> pd.DataFrame:
    r"""Two controls from a pool of m further answers of the reference to each prompt.

    The best of k (`group` "1", "2", "4", ... and m) is a policy that needs no training and is known to be better. Its expectation
    over all subsets of size k is unbiased and has no error of its own: with the scores in order $x_1 \le \dots \le x_m$,
    $E \max = \sum_i x_i \binom{i-1}{k-1} / \binom{m}{k}$. Where no two answers tie, its win-rate is k / (k + 1) in expectation,
    whoever judges: the reference's own answer is the best of k + 1 equals once in k + 1 times; ties make it less.

    Args:
        checkpoint: the reference; nothing of it is computed here.
        held_out: the reference's own answers, the pool, and a judge that scores one answer at a time; none under a judge that
            compares answers.

    Returns: `best_of_reward`, one row per prompt; `best_of_win_rate`, one row per prompt and own answer, a tie counting one half;
        `same_win_rate`, one draw of the pool against the own answer of the same number, 0.5 in expectation. Answers without a
        verdict (NaN) are left out, and so is what they leave too few for.

    Raises:
        DpobenchError: the judge did not return a score per answer.

    References: Beirami et al. 2024, arXiv:2401.01879 (win-rate and KL of best-of-n); Chen et al. 2021, arXiv:2107.03374 (the
        estimator over subsets).
    """
    pool, own = held_out.pool, held_out.reference_samples
    if held_out.judge is None or not len(pool):
        return pd.DataFrame({name: [] for name in COLUMNS})
    pool, own = (frame[["prompt", "draw", "text"]].reset_index(drop=True) for frame in (pool, own))
    judged = _scores(held_out, pd.concat([pool, own], ignore_index=True))
    pool, own = pool.assign(score=judged[: len(pool)]), own.assign(score=judged[len(pool) :])
    tables = [_same(pool, own)]
    pooled = {str(prompt): np.sort(part.dropna().to_numpy()) for prompt, part in pool.groupby("prompt")["score"]}
    for k in _sizes(int(pool.groupby("prompt").size().max())):
        enough = {prompt: scores for prompt, scores in pooled.items() if len(scores) >= k}
        rewards = [expected_best(scores, k) for scores in enough.values()]
        tables.append(score_rows(list(enough), "best_of_reward", rewards, group=str(k)))
        asked = own[own["prompt"].isin(enough) & own["score"].notna()]
        wins = [beats(enough[p], k, s) for p, s in zip(asked["prompt"], asked["score"], strict=True)]
        tables.append(
            score_rows(asked["prompt"].tolist(), "best_of_win_rate", wins, draws=asked["draw"].tolist(), group=str(k))
        )
    nothing = pd.DataFrame({name: [] for name in COLUMNS})
    return pd.concat([table for table in tables if len(table)] or [nothing], ignore_index=True)


def _sizes(most: int) -> list[int]:
    """1, 2, 4, ... and the whole pool."""
    return sorted({2**power for power in range(most.bit_length()) if 2**power <= most} | {most})


def expected_best(scores: np.ndarray, k: int) -> float:
    """Mean of the maximum over all subsets of size k of the sorted scores; `expected_best([1, 2, 4], 2)` is 10/3."""
    weights = [comb(place, k - 1) for place in range(len(scores))]
    return float(np.dot(scores, weights) / comb(len(scores), k))


def beats(scores: np.ndarray, k: int, other: float) -> float:
    """Share of the subsets of size k of the sorted scores whose maximum is above the other score, equal ones counted half."""
    below, up_to = int(np.searchsorted(scores, other, "left")), int(np.searchsorted(scores, other, "right"))
    return 1 - (comb(below, k) + comb(up_to, k)) / (2 * comb(len(scores), k))


def _same(pool: pd.DataFrame, own: pd.DataFrame) -> pd.DataFrame:
    """A draw of the pool against the reference's own answer of the same number."""
    both = own.merge(pool, on=["prompt", "draw"], suffixes=("", "_other")).dropna(subset=["score", "score_other"])
    values = (np.sign(both["score_other"] - both["score"]) + 1) / 2
    return score_rows(both["prompt"].tolist(), "same_win_rate", values, draws=both["draw"].tolist())


def _scores(held_out: HeldOut, answers: pd.DataFrame) -> np.ndarray:
    """The judge's score of each answer; equal answers to one prompt are asked about once."""
    prompts: dict[str, Prompt] = {prompt.id: prompt for prompt in held_out.prompts}
    wanted: Sequence[tuple[str, str]] = list(zip(answers["prompt"], answers["text"], strict=True))
    distinct = list(dict.fromkeys(wanted))
    assert held_out.judge is not None
    found: Any = held_out.judge([prompts[key] for key, _ in distinct], [text for _, text in distinct])
    if not isinstance(found, pd.DataFrame) or "score" not in found or len(found) != len(distinct):
        what = f"columns {list(found)}, {len(found)} rows" if isinstance(found, pd.DataFrame) else type(found).__name__
        raise DpobenchError(
            f"the judge returned {what} for {len(distinct)} answers; a table with column 'score' and a row per answer is expected"
        )
    known = dict(zip(distinct, found["score"].astype(np.float64), strict=True))
    return np.array([known[answer] for answer in wanted])
