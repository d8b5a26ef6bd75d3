"""Several objectives at once: each judge's verdicts on the answers, and how the policy ranks each set of held-out pairs."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from dpobench import Checkpoint, DpobenchError, HeldOut, Metric, evaluator, score_rows
from dpobench.artifacts.scores import COLUMNS
from dpobench.data.tokens import TokenPair
from dpobench.evaluation.heldout import Answer, PointwiseJudge, judge_answers, pair_prompts
from dpobench.evaluation.pairwise import VERDICT_COLUMNS, compare, require_verdicts, summary
from dpobench.models.logprobs import score_sequences

# How `summary` calls a metric of this evaluator.
_METRICS = {
    "score": "objective_win_rate",
    "missing": "objective_missing",
    "worst": "objective_win_rate_worst",
    "best": "objective_win_rate_best",
}


@evaluator(
    metrics={
        "objective_win_rate": Metric("share", "higher", label="win-rate by objective"),
        "objective_win_rate_worst": Metric("share", "higher", label="win-rate by objective, missing verdicts lost"),
        "objective_win_rate_best": Metric("share", "higher", label="win-rate by objective, missing verdicts won"),
        "objective_reward": Metric("reward", "higher", label="reward by objective"),
        "objective_missing": Metric("share", "lower", label="missing verdicts by objective"),
        "objective_accuracy": Metric("share", "higher", label="held-out accuracy by objective"),
    },
    needs=("objectives",),
    at_reference={"objective_win_rate": 0.5, "objective_accuracy": 0.5, "objective_missing": 0.0},
)
def objectives(
    checkpoint: Checkpoint, held_out: HeldOut, *, budget: int = 8192, most_missing: float = 0.05
) -> pd.DataFrame:
    """Every objective measured on the same answers; `group` is the objective's name.

    Args:
        checkpoint: whose answers are judged and whose likelihoods are compared.
        held_out: objectives, each a judge of either kind or a set of pairs with the reference's log-probabilities; prompts, answers
            of both.
        budget: most tokens of a padded batch of pairs.
        most_missing: largest share of the comparisons of one objective that may be without a verdict, 0 to 1.

    Returns: of a judge `objective_win_rate` against the reference's answer of the same draw (a win 1, a loss 0, a tie or identical
        texts 0.5; 0.5 in every row of the reference itself), `objective_missing`, 1 where there was no verdict,
        `objective_win_rate_worst` and `objective_win_rate_best`, with missing verdicts counted as lost and as won, and
        `objective_reward`, the score of the answer, under a judge that scores; the verdicts of judges that compare lie in
        `objective_verdicts.parquet`. Of a set of pairs `objective_accuracy`, 1 where the policy raised the preferred answer above
        the other, relative to the reference, 0.5 where it moved neither, as the reference does throughout. Pairs of one prompt
        share its hash and are numbered as draws.

    Raises:
        UserError: a judge left more comparisons without a verdict than `most_missing` allows.
        DpobenchError: a judge returned something else than verdicts, or a pair lacks the reference's log-probabilities.
    """
    both = held_out.samples[["prompt", "draw", "text"]].merge(
        held_out.reference_samples[["prompt", "draw", "text"]].rename(columns={"text": "other"}), on=["prompt", "draw"]
    )
    prompts = held_out.prompts_by_id
    results: dict[str, pd.DataFrame] = {}
    tables, verdicts = [], {}
    for name, objective in held_out.objectives.items():
        if objective.pairs:
            tables.append(_accuracy(checkpoint, name, objective.pairs, budget))
        elif objective.judge is not None:
            key = ("objective", objective.key)
            results[name] = _scored(held_out, f"the judge of objective {name}", objective.judge, key, both)
        elif objective.pairwise is not None:
            judged_prompts = [prompts[prompt] for prompt in both["prompt"]]
            verdicts[name] = compare(objective.pairwise, judged_prompts, both["text"].tolist(), both["other"].tolist())
            results[name] = summary(verdicts[name])
        for column, metric in _METRICS.items() if name in results else ():
            tables.append(_rows(both, metric, results[name][column], name))
        if name in results and "reward" in results[name]:
            tables.append(_rows(both, "objective_reward", results[name]["reward"], name))
    if verdicts:
        # Before anything is refused: what was paid for can be read.
        held_out.write_table("objective_verdicts", _verdict_table(checkpoint, both, verdicts))
    for name, result in results.items():
        unread = verdicts[name].loc[verdicts[name]["p_a"].isna(), "raw"].tolist() if name in verdicts else []
        opponent, example = f"the reference by objective {name}", unread[0] if unread else ""
        require_verdicts(result["missing"], most_missing, opponent, example, setting="objectives.most_missing")
    empty = pd.DataFrame({column: [] for column in COLUMNS})
    return pd.concat([table for table in tables if len(table)] or [empty], ignore_index=True)


def _scored(
    held_out: HeldOut, name: str, judge: PointwiseJudge, key: tuple[str, str], both: pd.DataFrame
) -> pd.DataFrame:
    """Columns as `summary` has them, and `reward`, under a judge that scores.

    Each answer is judged once, those of the reference once for all checkpoints.
    """

    def judged(answers: Sequence[Answer]) -> dict[Answer, float]:
        distinct = list(dict.fromkeys(answers))
        if not distinct:
            return {}
        table = judge_answers(judge, held_out.prompts_by_id, distinct, name)
        return dict(zip(distinct, table["score"].astype(np.float64).tolist(), strict=True))

    policy_answers, reference_answers = _answers(both, "text"), _answers(both, "other")
    cached = held_out.compute_once((*key, tuple(reference_answers)), lambda: judged(reference_answers))
    scores = cached | judged([answer for answer in policy_answers if answer not in cached])
    reward = np.array([scores[answer] for answer in policy_answers])
    other = np.array([cached[answer] for answer in reference_answers])
    identical = both["text"].to_numpy() == both["other"].to_numpy()
    won = np.where(identical, 0.5, (np.sign(reward - other) + 1) / 2)
    results = {"score": won, "missing": np.isnan(won).astype(np.float64), "reward": reward}
    return pd.DataFrame(results | {"worst": np.nan_to_num(won, nan=0.0), "best": np.nan_to_num(won, nan=1.0)})


def _answers(both: pd.DataFrame, column: str) -> list[Answer]:
    return list(zip(both["prompt"], both[column], strict=True))


def _rows(both: pd.DataFrame, metric: str, values: pd.Series, name: str) -> pd.DataFrame:
    """Rows of the values that are there."""
    there = values.notna().to_numpy()
    frame, numbers = both[there], values.to_numpy(dtype=np.float64)[there]
    return score_rows(frame["prompt"].tolist(), metric, numbers, draws=frame["draw"].tolist(), group=name)


def _verdict_table(checkpoint: Checkpoint, both: pd.DataFrame, verdicts: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """All verdicts, with the answers' prompts and draws."""
    policy, tables = str(checkpoint.run.get("id", "reference")), []
    for name, table in verdicts.items():
        shown = both.iloc[table["at"]].reset_index(drop=True)
        identity = {"objective": name, "prompt": shown["prompt"], "draw": shown["draw"], "a": policy, "b": "reference"}
        tables.append(table.assign(**identity)[["objective", *VERDICT_COLUMNS]])
    return pd.concat(tables, ignore_index=True)


def _accuracy(checkpoint: Checkpoint, name: str, pairs: Sequence[TokenPair], budget: int) -> pd.DataFrame:
    """Whether the log-ratio of the preferred answer is the larger one."""
    reference: list[npt.NDArray[np.float32]] = []
    for pair in pairs:
        if pair.chosen_reference is None or pair.rejected_reference is None:
            raise DpobenchError(
                f"held-out pair {pair.id} of objective {name} has no log-probabilities of the reference"
            )
        reference += [np.asarray(pair.chosen_reference), np.asarray(pair.rejected_reference)]
    policy = reference
    if not checkpoint.is_reference:
        answers = [(pair.prompt, answer) for pair in pairs for answer in (pair.chosen, pair.rejected)]
        policy = score_sequences(checkpoint.policy, answers, budget)
    logratio = np.array([(p.astype(np.float64) - q).sum() for p, q in zip(policy, reference, strict=True)])
    accuracy = (np.sign(logratio[::2] - logratio[1::2]) + 1) / 2
    prompts, draws = pair_prompts(pairs)
    return score_rows(prompts, "objective_accuracy", accuracy, draws=draws, group=name)
