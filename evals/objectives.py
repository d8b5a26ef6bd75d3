"""Several aims at once: what each judge says of the answers, and how each set of held-out pairs is ranked."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from dpobench import Checkpoint, DpobenchError, HeldOut, Metric, Prompt, evaluator, score_rows
from dpobench.artifacts.scores import COLUMNS
from dpobench.evaluation.pairwise import KEPT, compare, require, summary
from dpobench.models.logprobs import score_sequences

_UNSEEN = "held-out pair {} of objective {} has no log-probabilities of the reference"


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
    """Every objective's own measure, on the same answers; `group` is the objective's name.

    Args:
        checkpoint: whose answers are judged and whose likelihoods are compared.
        held_out: objectives, each a judge of either kind or a set of pairs with the reference's log-probabilities; prompts, answers
            of both.
        budget: most tokens of a padded batch of pairs.
        most_missing: largest share of the comparisons of one objective that may be without a verdict, 0 to 1.

    Returns: of a judge `objective_win_rate` against the reference's answer of the same draw (a win 1, a loss 0, a tie or identical
        texts 0.5), `objective_missing`, 1 where there was no verdict, `objective_win_rate_worst` and `objective_win_rate_best`, with
        missing verdicts counted as lost and as won, and `objective_reward`, the score of the answer, under a judge that scores; the
        verdicts of judges that compare lie in `objective_verdicts.parquet`. Of a set of pairs `objective_accuracy`, 1 where the policy
        raised the preferred answer above the other, relative to the reference, 0.5 where it moved neither. Pairs of one prompt share
        its hash and are numbered as draws.

    Raises:
        UserError: a judge left more comparisons without a verdict than `most_missing` allows.
        DpobenchError: a judge returned something else than asked for, or a pair lacks the reference's log-probabilities.
    """
    both = held_out.samples[["prompt", "draw", "text"]].merge(
        held_out.reference_samples[["prompt", "draw", "text"]].rename(columns={"text": "other"}), on=["prompt", "draw"]
    )
    tables, said = [], {}
    for name, objective in held_out.objectives.items():
        if objective.pairs:
            tables.append(_accuracy(checkpoint, name, objective.pairs, budget))
        elif objective.judge is not None:
            tables += _scored(held_out, name, objective, both)
        else:
            said[name] = _asked(held_out, objective, both)
            tables += _verdicts(both, summary(said[name]), name)
    if said:
        # Before anything is refused: what was paid for is there to be looked at.
        held_out.keep("objective_verdicts", _shown(checkpoint, both, said))
    for table in tables:
        if len(table) and table["metric"].iloc[0] == "objective_missing":
            name = table["group"].iloc[0]
            raw = said[name].loc[said[name]["p_a"].isna(), "raw"].tolist() if name in said else []
            whom = f"the reference by objective {name}"
            example = raw[0] if raw else ""
            require(table["value"].tolist(), most_missing, whom, example, setting="objectives.most_missing")
    empty = pd.DataFrame({column: [] for column in COLUMNS})
    return pd.concat([table for table in tables if len(table)] or [empty], ignore_index=True)


def _scored(held_out: HeldOut, name: str, objective: Any, both: pd.DataFrame) -> list[pd.DataFrame]:
    """Under a judge that scores: each answer is asked about once, those of the reference once for all checkpoints."""
    theirs = _answers(both, "other")
    known = held_out.once(
        ("objective", objective.key, tuple(theirs)), lambda: _scores(held_out, name, objective, theirs)
    )
    ours = _scores(held_out, name, objective, [answer for answer in _answers(both, "text") if answer not in known])
    scored = known | ours
    own = np.array([scored[answer] for answer in _answers(both, "text")])
    other = np.array([known[answer] for answer in theirs])
    same = both["text"].to_numpy() == both["other"].to_numpy()
    wins = np.where(same, 0.5, (np.sign(own - other) + 1) / 2)
    found = {"score": wins, "missing": np.isnan(wins).astype(np.float64)}
    found |= {"worst": np.nan_to_num(wins, nan=0.0), "best": np.nan_to_num(wins, nan=1.0)}
    return [*_verdicts(both, pd.DataFrame(found), name), *_kept(both, "objective_reward", own, name)]


def _asked(held_out: HeldOut, objective: Any, both: pd.DataFrame) -> pd.DataFrame:
    """Verdicts of a judge that compares, in both orders."""
    prompts: dict[str, Prompt] = {prompt.id: prompt for prompt in held_out.prompts}
    asked = [prompts[prompt] for prompt in both["prompt"]]
    return compare(objective.pairwise, asked, both["text"].tolist(), both["other"].tolist())


def _shown(checkpoint: Checkpoint, both: pd.DataFrame, said: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """All verdicts, with what they were given on."""
    whose, tables = str(checkpoint.run.get("id", "reference")), []
    for name, verdicts in said.items():
        shown = both.iloc[verdicts["at"]].reset_index(drop=True)
        told = {"objective": name, "prompt": shown["prompt"], "draw": shown["draw"], "a": whose, "b": "reference"}
        tables.append(verdicts.assign(**told)[["objective", *KEPT]])
    return pd.concat(tables, ignore_index=True)


def _verdicts(both: pd.DataFrame, found: pd.DataFrame, name: str) -> list[pd.DataFrame]:
    metrics = {"score": "objective_win_rate", "missing": "objective_missing"}
    metrics |= {"worst": "objective_win_rate_worst", "best": "objective_win_rate_best"}
    return [
        table
        for column, metric in metrics.items()
        for table in _kept(both, metric, found[column].to_numpy(dtype=np.float64), name)
    ]


def _kept(both: pd.DataFrame, metric: str, values: np.ndarray, name: str) -> list[pd.DataFrame]:
    """Rows of the values that are there."""
    seen = both[~np.isnan(values)]
    kept = values[~np.isnan(values)]
    return [score_rows(seen["prompt"].tolist(), metric, kept, draws=seen["draw"].tolist(), group=name)]


def _answers(both: pd.DataFrame, column: str) -> list[tuple[str, str]]:
    return list(zip(both["prompt"], both[column], strict=True))


def _scores(
    held_out: HeldOut, name: str, objective: Any, answers: Sequence[tuple[str, str]]
) -> dict[tuple[str, str], float]:
    prompts: dict[str, Prompt] = {prompt.id: prompt for prompt in held_out.prompts}
    distinct = list(dict.fromkeys(answers))
    if not distinct:
        return {}
    found: Any = objective.judge([prompts[key] for key, _ in distinct], [text for _, text in distinct])
    if not isinstance(found, pd.DataFrame) or "score" not in found or len(found) != len(distinct):
        what = f"columns {list(found)}, {len(found)} rows" if isinstance(found, pd.DataFrame) else type(found).__name__
        raise DpobenchError(
            f"the judge of objective {name} returned {what} for {len(distinct)} answers; a table with column 'score' and a row per "
            "answer is expected"
        )
    return dict(zip(distinct, found["score"].astype(np.float64).tolist(), strict=True))


def _accuracy(checkpoint: Checkpoint, name: str, pairs: Sequence[Any], budget: int) -> pd.DataFrame:
    """Whether the log-ratio of the preferred answer is the larger one."""
    unseen = [pair.id for pair in pairs if pair.chosen_reference is None or pair.rejected_reference is None]
    if unseen:
        raise DpobenchError(_UNSEEN.format(unseen[0], name))
    sides = [(p.prompt, side) for p in pairs for side in (p.chosen, p.rejected)]
    reference = [np.asarray(side) for p in pairs for side in (p.chosen_reference, p.rejected_reference)]
    policy = reference if checkpoint.is_reference else score_sequences(checkpoint.policy, sides, budget)
    shift = np.array([(p.astype(np.float64) - q).sum() for p, q in zip(policy, reference, strict=True)])
    prompts = [hashlib.sha256(pair.prompt.tobytes()).hexdigest()[:12] for pair in pairs]
    draws = pd.Series(prompts).groupby(prompts).cumcount().tolist()
    return score_rows(
        prompts, "objective_accuracy", (np.sign(shift[::2] - shift[1::2]) + 1) / 2, draws=draws, group=name
    )
