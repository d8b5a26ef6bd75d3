"""How often a judge prefers the policy's answer: to the reference's, and to the one the data set calls chosen."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from dpobench import Checkpoint, DpobenchError, HeldOut, Metric, UserError, evaluator, score_rows
from dpobench.evaluation.heldout import Answer, PointwiseJudge, judge_answers
from dpobench.evaluation.pairwise import VERDICT_COLUMNS, PairwiseJudge, compare, require_verdicts, summary

# How `summary` calls a metric of this evaluator.
_METRICS = {
    "score": "win_rate",
    "worst": "win_rate_worst",
    "best": "win_rate_best",
    "missing": "missing",
    "tie": "tie",
    "first_shown": "first_shown",
    "inconsistent": "inconsistent",
}


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
    compares is called in both orders, and the mean of the two probabilities counts. Identical texts tie, whatever the judge.

    Args:
        checkpoint: whose answers are judged.
        held_out: prompts, answers of both, and a judge of either kind.
        most_missing: largest share of comparisons with one opponent that may be without a verdict, 0 to 1.

    Returns: `win_rate`, in [0, 1], 0.5 in every row where the reference meets itself; `missing`, 1 where the judge gave no verdict,
        or none in one of the orders; `win_rate_worst` and `win_rate_best`, with missing verdicts counted as lost and as won. A
        comparison without a verdict has no `win_rate` row: neither win nor loss. `tie`, 1 where the texts are identical, the
        scores equal, or the judge tied them in both orders. Of a judge that scores, `reward`, its score of the sample in the
        judge's unit, and `reward_<part>` for the further columns it gave. Of one that compares, `first_shown`, the share of its
        two verdicts that went to the answer shown first (0.5 for a judge without a preference for a place), and `inconsistent`, 1
        where the orders named different answers; its verdicts lie in `verdicts.parquet`.

    Raises:
        UserError: there is no judge, or it left more comparisons without a verdict than `most_missing` allows.
        DpobenchError: the judge returned something else than verdicts, or the reference did not answer a prompt.
    """
    samples = held_out.samples[["prompt", "draw", "text"]]
    opponents = {name: frame for name in held_out.opponents if len(frame := _with_opponent(name, samples, held_out))}
    if held_out.judge is not None:
        return _scored(held_out.judge, samples, opponents, held_out, most_missing)
    if held_out.pairwise is not None:
        name = str(checkpoint.run.get("id", "reference"))
        return _compared(held_out.pairwise, name, opponents, held_out, most_missing)
    raise UserError("win-rate needs a judge; name one, or leave winrate out")


def _with_opponent(name: str, samples: pd.DataFrame, held_out: HeldOut) -> pd.DataFrame:
    """The checkpoint's answers that an opponent answered, too, its text in column `other`."""
    if name == "chosen":
        chosen = samples.assign(other=samples["prompt"].map({p.id: p.chosen for p in held_out.prompts}))
        return chosen[chosen["other"].notna()]
    if name != "reference":
        raise DpobenchError(f"there is no opponent called {name!r}; known: reference, chosen")
    other = held_out.reference_samples[["prompt", "draw", "text"]].rename(columns={"text": "other"})
    both = samples.merge(other, on=["prompt", "draw"], how="left", validate="one_to_one")
    if both["other"].isna().any():
        prompt, draw = both.loc[both["other"].isna(), ["prompt", "draw"]].iloc[0]
        raise DpobenchError(
            f"the reference has no answer {draw} to prompt {prompt}; sample both with the same settings"
        )
    return both


def _compared(
    judge: PairwiseJudge, name: str, opponents: Mapping[str, pd.DataFrame], held_out: HeldOut, most_missing: float
) -> pd.DataFrame:
    """Rows by a judge that compares two answers."""
    prompts = held_out.prompts_by_id
    verdicts, tables = {}, [pd.DataFrame({column: [] for column in VERDICT_COLUMNS})]
    for opponent, frame in opponents.items():
        judged_prompts = [prompts[key] for key in frame["prompt"]]
        compared = compare(judge, judged_prompts, frame["text"].tolist(), frame["other"].tolist())
        shown = frame.iloc[compared["at"]].reset_index(drop=True)
        identity = {"prompt": shown["prompt"], "draw": shown["draw"], "a": name, "b": opponent}
        tables.append(compared.assign(**identity)[list(VERDICT_COLUMNS)])
        verdicts[opponent] = compared
    # Before anything is refused: what was paid for can be read.
    held_out.write_table("verdicts", pd.concat(tables[1:] or tables, ignore_index=True))
    scores = [score_rows(held_out.samples["prompt"].tolist(), "missing", 0.0).head(0)]
    for opponent, compared in verdicts.items():
        unread = compared.loc[compared["p_a"].isna(), "raw"]
        results = summary(compared)
        require_verdicts(results["missing"], most_missing, opponent, unread.iloc[0] if len(unread) else "")
        scores.append(_opponent_rows(opponents[opponent], opponent, results))
    return pd.concat(scores, ignore_index=True)


def _opponent_rows(frame: pd.DataFrame, opponent: str, results: pd.DataFrame) -> pd.DataFrame:
    """Rows against one opponent from columns as `summary` has them; what is NaN has no row."""
    tables = [
        score_rows(frame["prompt"].tolist(), metric, results[name], draws=frame["draw"].tolist(), group=opponent)
        for name, metric in _METRICS.items()
        if name in results
    ]
    return pd.concat(tables, ignore_index=True).dropna(subset="value", ignore_index=True)


def _scored(
    judge: PointwiseJudge,
    samples: pd.DataFrame,
    opponents: Mapping[str, pd.DataFrame],
    held_out: HeldOut,
    most_missing: float,
) -> pd.DataFrame:
    """Rows by a judge that scores one answer at a time; each answer is judged once, so that equal answers have equal scores."""
    prompts = held_out.prompts_by_id

    def judged(answers: tuple[Answer, ...]) -> pd.DataFrame:
        index = pd.MultiIndex.from_tuples(answers, names=["prompt", "text"])
        return judge_answers(judge, prompts, answers).set_axis(index).astype(np.float64)

    # The opponents' answers, which every policy meets, are judged once for all checkpoints.
    others = tuple(dict.fromkeys(answer for frame in opponents.values() for answer in _answers(frame, "other")))
    scores = held_out.compute_once(("judged", others), lambda: judged(others))
    policy_answers = _answers(samples, "text")
    new = tuple(answer for answer in dict.fromkeys(policy_answers) if answer not in scores.index)
    if new:
        scores = pd.concat([scores, judged(new)])

    def scores_of(frame: pd.DataFrame, column: str) -> pd.DataFrame:
        return scores.reindex(pd.MultiIndex.from_tuples(_answers(frame, column)))

    tables = []
    for name, rewards in scores_of(samples, "text").items():
        metric = "reward" if name == "score" else f"reward_{name}"
        tables.append(score_rows(samples["prompt"].tolist(), metric, rewards, draws=samples["draw"].tolist()))
    tables = [pd.concat(tables, ignore_index=True).dropna(subset="value", ignore_index=True)]
    for opponent, frame in opponents.items():
        policy, other = (scores_of(frame, column)["score"].to_numpy() for column in ("text", "other"))
        identical = frame["text"].to_numpy() == frame["other"].to_numpy()
        missing = (np.isnan(policy) | np.isnan(other)) & ~identical
        require_verdicts(missing, most_missing, opponent)
        won = np.where(identical | (policy == other), 0.5, (policy > other).astype(np.float64))
        results = {
            "score": np.where(missing, np.nan, won),
            "worst": np.where(missing, 0.0, won),
            "best": np.where(missing, 1.0, won),
            "missing": missing.astype(np.float64),
            "tie": np.where(missing, np.nan, (won == 0.5).astype(np.float64)),
        }
        tables.append(_opponent_rows(frame, opponent, pd.DataFrame(results)))
    return pd.concat(tables, ignore_index=True)


def _answers(frame: pd.DataFrame, column: str) -> list[Answer]:
    return list(zip(frame["prompt"].tolist(), frame[column].tolist(), strict=True))
