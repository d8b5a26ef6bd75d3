"""How often a judge prefers the policy's answer: to the reference's, and to the one the data set calls chosen."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from dpobench import Checkpoint, DpobenchError, HeldOut, Metric, Prompt, UserError, evaluator, score_rows
from dpobench.evaluation.pairwise import KEPT, compare, require, summary


@evaluator(
    metrics={
        "win_rate": Metric("share", "higher", "headline", "win-rate"),
        "win_rate_worst": Metric("share", "higher", label="win-rate, missing verdicts lost"),
        "win_rate_best": Metric("share", "higher", label="win-rate, missing verdicts won"),
        "reward": Metric("reward", "higher", label="reward"),
        "missing": Metric("share", "lower", label="missing verdicts"),
        "tie": Metric("share", "none", label="ties"),
        "first_shown": Metric("share", "none", label="wins of the answer shown first"),
        "inconsistent": Metric("share", "lower", label="verdicts that turn with the order"),
        "*": Metric("reward", "none", label="part of the reward"),
    },
    needs=("judge",),
    within=True,
    at_reference={"win_rate": 0.5, "tie": 1.0, "missing": 0.0},
)
def winrate(checkpoint: Checkpoint, held_out: HeldOut, *, most_missing: float = 0.05) -> pd.DataFrame:
    """Verdicts on the checkpoint's samples, one per sample and opponent.

    Opponents (`group`): "reference", its answer to the same prompt in the same draw, and "chosen", the data set's preferred
    answer where the prompt has one. Of a judge that scores, a win is 1, a loss 0, and equal scores tie, 0.5; a judge that
    compares is asked in both orders, and the mean of the two probabilities counts. Identical texts tie, whatever the judge.

    Args:
        checkpoint: whose answers are judged; the reference against itself is a tie throughout.
        held_out: prompts, answers of both, and a judge of either kind.
        most_missing: largest share of comparisons with one opponent that may be without a verdict, 0 to 1.

    Returns: `win_rate`; `missing`, 1 where the judge gave no verdict, or none in one of the orders; `win_rate_worst` and
        `win_rate_best`, with missing verdicts counted as lost and as won. A comparison without a verdict has no `win_rate`
        row: neither win nor loss. `tie`, 1 where the texts are identical, the scores equal, or the judge tied them in both orders.
        Of a judge that scores, `reward`, its score of the sample, and `reward_<part>` for the further
        columns it gave. Of one that compares, `first_shown`, the share of its two verdicts that went to the answer shown first,
        and `inconsistent`, 1 where the orders named different answers; its verdicts lie in `verdicts.parquet`.

    Raises:
        UserError: there is no judge, or it left more comparisons without a verdict than `most_missing` allows.
        DpobenchError: the judge did not return what it must, or the reference did not answer a prompt.
    """
    if held_out.judge is None and held_out.pairwise is None:
        raise UserError("win-rate needs a judge; name one, or leave winrate out")
    own = held_out.samples[["prompt", "draw", "text"]]
    opponents = {name: frame for name in held_out.opponents if len(frame := _against(name, own, held_out))}
    if held_out.judge is not None:
        return _scored(own, opponents, held_out, most_missing)
    return _compared(checkpoint, own, opponents, held_out, most_missing)


def _against(name: str, own: pd.DataFrame, held_out: HeldOut) -> pd.DataFrame:
    """The checkpoint's answers with an opponent's beside them, column `other`."""
    if name == "reference":
        return _against_reference(own, held_out.reference_samples)
    if name == "chosen":
        chosen = own.assign(other=own["prompt"].map({p.id: p.chosen for p in held_out.prompts}))
        return chosen[chosen["other"].notna()]
    raise DpobenchError(f"there is no opponent called {name!r}; known: reference, chosen")


def _scored(
    own: pd.DataFrame, opponents: Mapping[str, pd.DataFrame], held_out: HeldOut, most_missing: float
) -> pd.DataFrame:
    """By a judge that scores one answer at a time."""
    scores = _scores(own, opponents, held_out)
    tables = [_rewards(own, scores)]
    tables += [_verdicts(frame, scores["score"], group, most_missing) for group, frame in opponents.items()]
    return pd.concat(tables, ignore_index=True)


def _compared(
    checkpoint: Checkpoint,
    own: pd.DataFrame,
    opponents: Mapping[str, pd.DataFrame],
    held_out: HeldOut,
    most_missing: float,
) -> pd.DataFrame:
    """By a judge that compares two answers."""
    assert held_out.pairwise is not None
    prompts = {prompt.id: prompt for prompt in held_out.prompts}
    name = str(checkpoint.run.get("id", "reference"))
    found, kept = {}, [pd.DataFrame({column: [] for column in KEPT})]
    for group, frame in opponents.items():
        asked = [prompts[key] for key in frame["prompt"]]
        found[group] = compare(held_out.pairwise, asked, frame["text"].tolist(), frame["other"].tolist())
        shown = frame.iloc[found[group]["at"]].reset_index(drop=True)
        kept.append(found[group].assign(prompt=shown["prompt"], draw=shown["draw"], a=name, b=group)[list(KEPT)])
    # Before anything is refused: what was paid for is there to be looked at.
    held_out.keep("verdicts", pd.concat(kept[1:] or kept, ignore_index=True))
    tables = [score_rows(own["prompt"].tolist(), "missing", 0.0).head(0)]
    for group, verdicts in found.items():
        said = verdicts.loc[verdicts["p_a"].isna(), "raw"]
        come_to = summary(verdicts)
        require(come_to["missing"], most_missing, group, said.iloc[0] if len(said) else "")
        tables.append(_of_opponent(opponents[group], group, come_to))
    return pd.concat(tables, ignore_index=True)


def _of_opponent(frame: pd.DataFrame, group: str, found: pd.DataFrame) -> pd.DataFrame:
    """Rows against one opponent; what is NaN has no row."""
    metrics = {"score": "win_rate", "worst": "win_rate_worst", "best": "win_rate_best", "missing": "missing"}
    metrics |= {name: name for name in ("tie", "first_shown", "inconsistent") if name in found}
    tables = [
        score_rows(frame["prompt"].tolist(), metric, found[name], draws=frame["draw"].tolist(), group=group)
        for name, metric in metrics.items()
    ]
    return pd.concat(tables, ignore_index=True).dropna(subset="value", ignore_index=True)


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
        tables.append(score_rows(own["prompt"].tolist(), metric, found[column], draws=own["draw"].tolist()))
    return pd.concat(tables, ignore_index=True).dropna(subset="value", ignore_index=True)


def _verdicts(frame: pd.DataFrame, scores: pd.Series, group: str, most_missing: float) -> pd.DataFrame:
    ours = _of(scores, _answers(frame, "text")).to_numpy()
    theirs = _of(scores, _answers(frame, "other")).to_numpy()
    identical = frame["text"].to_numpy() == frame["other"].to_numpy()
    missing = (np.isnan(ours) | np.isnan(theirs)) & ~identical
    require(missing, most_missing, group)
    value = np.where(identical | (ours == theirs), 0.5, (ours > theirs).astype(np.float64))
    found = {"score": np.where(missing, np.nan, value), "missing": missing.astype(np.float64)}
    found |= {"worst": np.where(missing, 0.0, value), "best": np.where(missing, 1.0, value)}
    found["tie"] = np.where(missing, np.nan, (value == 0.5).astype(np.float64))
    return _of_opponent(frame, group, pd.DataFrame(found))
