"""Two controls of the judge: the best of several answers of the reference must win, a second draw must not."""

from math import comb

import numpy as np
import numpy.typing as npt
import pandas as pd

from dpobench import Checkpoint, HeldOut, Metric, evaluator, score_rows
from dpobench.artifacts.scores import COLUMNS
from dpobench.evaluation.heldout import judge_answers


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

    The best of k (`group` "1", "2", "4", ... and m) is a policy that needs no training and is known to be better. Its mean over
    all subsets of size k is unbiased and draws nothing at random: with the scores in order $x_1 \le \dots \le x_m$,
    $E \max = \sum_i x_i \binom{i-1}{k-1} / \binom{m}{k}$. Where no two answers tie, its win-rate is k / (k + 1) in expectation,
    whoever judges: the reference's answer is the best of k + 1 equals once in k + 1 times; ties make it less.

    Args:
        checkpoint: the reference; nothing of it is computed here.
        held_out: the reference's answers, the pool, and a judge that scores one answer at a time; none under a judge that
            compares answers.

    Returns: `best_of_reward`, in the judge's unit, one row per prompt; `best_of_win_rate`, in [0, 1], one row per prompt and answer
        of the reference, a tie counting one half; `same_win_rate`, one draw of the pool against the reference's answer of the same
        number, 0.5 in expectation. Answers without a verdict (NaN) are left out, and so is what they leave too few for.

    Raises:
        DpobenchError: the judge did not return a score per answer.

    References: Beirami et al. 2024, arXiv:2401.01879 (win-rate and KL of best-of-n); Chen et al. 2021, arXiv:2107.03374 (the
        estimator over subsets).
    """
    empty = pd.DataFrame({name: [] for name in COLUMNS})
    if held_out.judge is None or not len(held_out.pool):
        return empty
    pool, reference = (
        frame[["prompt", "draw", "text"]].reset_index(drop=True)
        for frame in (held_out.pool, held_out.reference_samples)
    )
    both = pd.concat([pool, reference], ignore_index=True)
    answers = list(zip(both["prompt"], both["text"], strict=True))
    # Equal answers to one prompt are judged once.
    distinct = list(dict.fromkeys(answers))
    table = judge_answers(held_out.judge, held_out.prompts_by_id, distinct)
    score_of = dict(zip(distinct, table["score"].astype(np.float64), strict=True))
    scores = np.array([score_of[answer] for answer in answers])
    pool, reference = pool.assign(score=scores[: len(pool)]), reference.assign(score=scores[len(pool) :])

    same = reference.merge(pool, on=["prompt", "draw"], suffixes=("", "_other")).dropna(subset=["score", "score_other"])
    wins = (np.sign(same["score_other"] - same["score"]) + 1) / 2
    tables = [score_rows(same["prompt"].tolist(), "same_win_rate", wins, draws=same["draw"].tolist())]
    sorted_scores = {str(prompt): np.sort(part.dropna().to_numpy()) for prompt, part in pool.groupby("prompt")["score"]}
    for k in _sizes(int(pool.groupby("prompt").size().max())):
        enough = {prompt: scores for prompt, scores in sorted_scores.items() if len(scores) >= k}
        rewards = [expected_best(scores, k) for scores in enough.values()]
        tables.append(score_rows(list(enough), "best_of_reward", rewards, group=str(k)))
        rivals = reference[reference["prompt"].isin(enough) & reference["score"].notna()]
        prompts = rivals["prompt"].tolist()
        shares = [beats(enough[p], k, score) for p, score in zip(prompts, rivals["score"], strict=True)]
        tables.append(score_rows(prompts, "best_of_win_rate", shares, draws=rivals["draw"].tolist(), group=str(k)))
    return pd.concat([table for table in tables if len(table)] or [empty], ignore_index=True)


def _sizes(most: int) -> list[int]:
    """1, 2, 4, ... and the whole pool."""
    return sorted({2**power for power in range(most.bit_length()) if 2**power <= most} | {most})


def expected_best(scores: npt.NDArray[np.float64], k: int) -> float:
    """Mean of the maximum over all subsets of size k.

    Args:
        scores: m scores, sorted from the lowest.
        k: 1 to m.

    Example:
        >>> round(expected_best(np.array([1.0, 2.0, 4.0]), 2), 4)  # (2 + 4 + 4) / 3
        3.3333
    """
    weights = [comb(place, k - 1) for place in range(len(scores))]
    return float(np.dot(scores, weights) / comb(len(scores), k))


def beats(scores: npt.NDArray[np.float64], k: int, other: float) -> float:
    """Share of the subsets of size k whose maximum is above another score, equal ones counted half.

    Args:
        scores: m scores, sorted from the lowest.
        k: 1 to m.
        other: the score to beat.

    Example:
        >>> round(beats(np.array([1.0, 2.0, 4.0]), 2, 2.0), 4)  # one maximum is equal, two are above: (1 / 2 + 2) / 3
        0.8333
    """
    below, up_to = int(np.searchsorted(scores, other, "left")), int(np.searchsorted(scores, other, "right"))
    return 1 - (comb(below, k) + comb(up_to, k)) / (2 * comb(len(scores), k))
