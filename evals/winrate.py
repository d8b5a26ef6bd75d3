"""How often a judge prefers the policy's answer: to the reference's, and to the one the data set calls chosen."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from dpobench import Checkpoint, DpobenchError, HeldOut, Metric, Prompt, UserError, evaluator
from dpobench.scores import rows


@evaluator(
    metrics={
        "win_rate": Metric("share", "higher", "headline", "win-rate"),
        "reward": Metric("reward", "higher", label="reward"),
        "missing": Metric("share", "lower", label="missing verdicts"),
        "*": Metric("reward", "none", label="part of the reward"),
    },
    needs=("judge",),
)
def winrate(checkpoint: Checkpoint, held_out: HeldOut) -> pd.DataFrame:
    """Verdicts on the checkpoint's samples, one per sample and opponent.

    Opponents (`group`): "reference", its answer to the same prompt in the same draw, and "chosen", the data set's preferred
    answer where the prompt has one. A win is 1, a loss 0; equal scores and identical texts are ties, 0.5, whatever the judge.

    Args:
        checkpoint: whose answers are judged; the reference against itself is a tie throughout.
        held_out: prompts, answers of both, and a judge that scores one answer at a time.

    Returns: `win_rate`; `reward`, the judge's score of the sample, and `reward_<part>` for the further columns it gave;
        `missing`, 1 where the judge gave no verdict (NaN). A missing verdict has no `win_rate` row: neither win nor loss.

    Raises:
        UserError: there is no judge.
        DpobenchError: the judge did not return a score per answer, or the reference did not answer a prompt.
    """
    if held_out.judge is None:
        raise UserError("win-rate needs a judge; name one, or leave winrate out")
    own = held_out.samples[["prompt", "draw", "text"]]
    opponents = {"reference": _against_reference(own, held_out.reference_samples)}
    chosen = own.assign(other=own["prompt"].map({p.id: p.chosen for p in held_out.prompts}))
    opponents["chosen"] = chosen[chosen["other"].notna()]
    scores = _scores(own, opponents, held_out)
    tables = [_rewards(own, scores)]
    tables += [_verdicts(frame, scores["score"], group) for group, frame in opponents.items() if len(frame)]
    return pd.concat(tables, ignore_index=True)


def _scores(own: pd.DataFrame, opponents: Mapping[str, pd.DataFrame], held_out: HeldOut) -> pd.DataFrame:
    """Scores of all answers; those of the opponents, which every policy meets, are asked for once."""
    others = tuple(dict.fromkeys(answer for frame in opponents.values() for answer in _answers(frame, "other")))
    known = held_out.once(("judged", others), lambda: _judged(held_out, others))
    new = [answer for answer in dict.fromkeys(_answers(own, "text")) if answer not in known.index]
    return pd.concat([known, _judged(held_out, new)]) if new else known


def _against_reference(own: pd.DataFrame, reference: pd.DataFrame) -> pd.DataFrame:
    other = reference[["prompt", "draw", "text"]].rename(columns={"text": "other"})
    found = own.merge(other, on=["prompt", "draw"], how="left", validate="one_to_one")
    if found["other"].isna().any():
        prompt, draw = found.loc[found["other"].isna(), ["prompt", "draw"]].iloc[0]
        raise DpobenchError(
            f"the reference has no answer {draw} to prompt {prompt}; sample both with the same settings"
        )
    return found


def _answers(frame: pd.DataFrame, column: str) -> list[tuple[str, str]]:
    return list(zip(frame["prompt"].tolist(), frame[column].tolist(), strict=True))


def _judged(held_out: HeldOut, answers: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """Scores by (prompt, text): each answer is judged once, so that equal answers have equal scores."""
    prompts: dict[str, Prompt] = {prompt.id: prompt for prompt in held_out.prompts}
    assert held_out.judge is not None
    found: Any = held_out.judge([prompts[key] for key, _ in answers], [text for _, text in answers])
    if not isinstance(found, pd.DataFrame) or "score" not in found or len(found) != len(answers):
        what = f"columns {list(found)}, {len(found)} rows" if isinstance(found, pd.DataFrame) else type(found).__name__
        raise DpobenchError(
            f"the judge returned {what} for {len(answers)} answers; a table with column 'score' and a row per answer is expected"
        )
    index = pd.MultiIndex.from_tuples(answers, names=["prompt", "text"])
    return found.set_axis(index).astype(np.float64)


def _of(scores: Any, answers: Sequence[tuple[str, str]]) -> Any:
    return scores.reindex(pd.MultiIndex.from_tuples(answers))


def _rewards(own: pd.DataFrame, scores: pd.DataFrame) -> pd.DataFrame:
    found = _of(scores, _answers(own, "text"))
    tables = []
    for column in found:
        metric = "reward" if column == "score" else f"reward_{column}"
        tables.append(rows(own["prompt"].tolist(), metric, found[column], draws=own["draw"].tolist()))
    return pd.concat(tables, ignore_index=True).dropna(subset="value", ignore_index=True)


def _verdicts(frame: pd.DataFrame, scores: pd.Series, group: str) -> pd.DataFrame:
    ours = _of(scores, _answers(frame, "text")).to_numpy()
    theirs = _of(scores, _answers(frame, "other")).to_numpy()
    identical = frame["text"].to_numpy() == frame["other"].to_numpy()
    missing = (np.isnan(ours) | np.isnan(theirs)) & ~identical
    value = np.where(identical | (ours == theirs), 0.5, (ours > theirs).astype(np.float64))
    seen = frame[~missing]
    return pd.concat(
        [
            rows(seen["prompt"].tolist(), "win_rate", value[~missing], draws=seen["draw"].tolist(), group=group),
            rows(frame["prompt"].tolist(), "missing", missing, draws=frame["draw"].tolist(), group=group),
        ],
        ignore_index=True,
    )
