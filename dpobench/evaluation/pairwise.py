"""Verdicts of a judge that compares two answers: both orders always, one more try where there is no verdict, nothing guessed.

Judges prefer a place as well as an answer, so the mean over both orders is the score, and a comparison that lacks one order
has none. A verdict that stays away is missing, neither a win nor a loss; two bounds count it as lost and as won.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias, TypedDict, cast

import numpy as np
import numpy.typing as npt
import pandas as pd

from dpobench.data.prompts import Prompt
from dpobench.errors import DpobenchError, UserError

PairwiseJudge: TypeAlias = Callable[[Sequence[Prompt], Sequence[str], Sequence[str]], pd.DataFrame]
"""A judge that compares, its settings filled in: N prompts, first and second answers give a table of N rows, `VerdictRow` each."""


class VerdictRow(TypedDict):
    """What a judge returns for one comparison, in the order in which the two answers were shown."""

    p_first: float
    """Probability in [0, 1] that the first answer is better; NaN without a verdict."""
    verdict: str
    """One of first, second, tie, unparsable, error."""
    raw: str | None
    """The judge's reply; None where no reply exists for this order."""
    tokens: int
    """Read and written."""
    latency: float
    """Seconds."""
    cost: float
    """In the currency of the judge's prices."""


Comparison: TypeAlias = tuple[Prompt, str, str]
"""A prompt and two answers in the order in which they are shown."""
VERDICTS = ("first", "second", "tie", "unparsable", "error")
MISSING = VERDICTS[3:]
# Of `compare`, in this order; two rows a comparison.
COLUMNS = ("at", "order", "p_a", "verdict", "raw", "tokens", "latency", "cost")
# Of the tables of verdicts that evaluators write next to the scores.
VERDICT_COLUMNS = ("prompt", "draw", "a", "b", *COLUMNS[1:])
_TYPES: Mapping[str, type] = {
    "p_first": np.float64,
    "verdict": object,
    "raw": object,
    "tokens": np.int64,
    "latency": np.float64,
    "cost": np.float64,
}
# The verdict on two identical answers, which no judge is needed for.
_IDENTICAL: VerdictRow = {"p_first": 0.5, "verdict": "tie", "raw": None, "tokens": 0, "latency": 0.0, "cost": 0.0}


def compare(judge: PairwiseJudge, prompts: Sequence[Prompt], a: Sequence[str], b: Sequence[str]) -> pd.DataFrame:
    """Judge N pairs of answers, each in both orders.

    Equal comparisons are judged once. Identical answers tie without a call. Where a verdict is missing the judge is called once more.

    Args:
        judge: the judge, as `HeldOut.pairwise`.
        prompts: N prompts.
        a: one answer to each.
        b: the other.

    Returns: 2N rows: `at`, number of the pair; `order`, 0 where a was shown first and 1 where b was; `p_a`, probability that a is
        better, NaN where there is no verdict; `verdict`, one of a, b, tie, unparsable, error; `raw`, the judge's reply, None
        where the judge was not called; `tokens`, `latency` in seconds and `cost` over both tries.

    Raises:
        DpobenchError: the judge returned something else than verdicts.
    """
    shown = list(zip(prompts, a, b, strict=True))
    flipped = [(prompt, second, first) for prompt, first, second in shown]
    distinct = {_key(one): one for one in [*shown, *flipped] if one[1] != one[2]}
    table = _verdicts(judge, list(distinct.values()))
    verdicts = dict(zip(distinct, cast(list[VerdictRow], table.to_dict("records")), strict=True))
    rows: list[tuple[object, ...]] = []
    for at, orders in enumerate(zip(shown, flipped, strict=True)):
        for order, comparison in enumerate(orders):
            row = verdicts.get(_key(comparison), _IDENTICAL)
            p_a = 1 - row["p_first"] if order else row["p_first"]
            verdict = {"first": "ab"[order], "second": "ba"[order]}.get(row["verdict"], row["verdict"])
            rows.append((at, order, p_a, verdict, row["raw"], row["tokens"], row["latency"], row["cost"]))
    types = {name: kind for name, kind in _TYPES.items() if name in COLUMNS}
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"at": np.int64, "order": np.int64, "p_a": float, **types})


def _key(comparison: Comparison) -> tuple[str, str, str]:
    return comparison[0].id, comparison[1], comparison[2]


def _verdicts(judge: PairwiseJudge, comparisons: Sequence[Comparison]) -> pd.DataFrame:
    """The judge's verdicts on comparisons as shown; those without one are judged a second time."""
    table = _judged(judge, comparisons)
    again = np.flatnonzero(table["p_first"].isna()).tolist()
    if again:
        second = _judged(judge, [comparisons[at] for at in again]).set_axis(again)
        for name in ("tokens", "latency", "cost"):
            second[name] += table.loc[again, name]
        table.loc[again] = second
    return table


def _judged(judge: PairwiseJudge, comparisons: Sequence[Comparison]) -> pd.DataFrame:
    """One call of the judge: its table with all columns of `VerdictRow`, checked."""
    if not comparisons:
        return pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in _TYPES.items()})
    prompts, first, second = zip(*comparisons, strict=True)
    reply: object = judge(prompts, first, second)
    if not isinstance(reply, pd.DataFrame) or "p_first" not in reply or len(reply) != len(comparisons):
        returned = (
            f"columns {list(reply)}, {len(reply)} rows" if isinstance(reply, pd.DataFrame) else type(reply).__name__
        )
        raise DpobenchError(
            f"the judge returned {returned} for {len(comparisons)} comparisons; a table with column 'p_first' and a row each is "
            "expected"
        )
    table = reply.reset_index(drop=True)
    p_first = table["p_first"].to_numpy(dtype=np.float64)
    if "verdict" not in table:
        table["verdict"] = verdicts_of(p_first)
    for name, value in {"raw": "", "tokens": 0, "latency": 0.0, "cost": 0.0}.items():
        if name not in table:
            table[name] = value
    for p, verdict in zip(p_first.tolist(), table["verdict"].tolist(), strict=True):
        if verdict not in VERDICTS or not (np.isnan(p) or 0 <= p <= 1) or np.isnan(p) != (verdict in MISSING):
            raise DpobenchError(
                f"the judge returned p_first = {p} with verdict {verdict!r}; a number from 0 to 1 with first, second or tie is "
                "expected, or NaN with unparsable or error"
            )
    return table[list(_TYPES)].astype(dict(_TYPES))


def verdicts_of(p_first: npt.NDArray[np.float64], missing: str = "unparsable") -> list[str]:
    """Names of N verdicts.

    Args:
        p_first: N probabilities that the first answer is better; NaN where there is no verdict.
        missing: what NaN is called, "unparsable" or "error".

    Example:
        >>> verdicts_of(np.array([0.9, 0.5, np.nan]))
        ['first', 'tie', 'unparsable']
    """
    return [missing if np.isnan(p) else "tie" if p == 0.5 else "first" if p > 0.5 else "second" for p in p_first]


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per comparison, from the verdicts in both orders.

    Args:
        rows: from `compare`.

    Returns: a row per comparison, by `at`: `score`, mean of `p_a` over the orders, NaN where one is missing; `worst` and
        `best`, the same with each missing verdict counted as lost or as won; `missing` and `unparsable`, 1 where either order
        is; `says`, 1 for a, 0 for b, 0.5 for neither, by the score; `tie`, 1 where both orders tie, NaN where one is
        missing; `first_shown`, the share of the two verdicts that went to the answer shown first, a tie being half;
        `inconsistent`, 1 where the two orders named different answers. The last two are NaN for identical answers, where a
        verdict is missing, and where the judge was not called in both orders.

    Example:
        A judge that always takes the first: p_a = 1 in one order and 0 in the other, so the score is 0.5,
        `first_shown` 1 and `inconsistent` 1.
    """
    ordered = rows.sort_values(["at", "order"])
    p = ordered["p_a"].to_numpy(dtype=np.float64).reshape(-1, 2)
    verdict = ordered["verdict"].to_numpy(dtype=object).reshape(-1, 2)
    compared = ordered["raw"].notna().to_numpy().reshape(-1, 2).all(1) & ~np.isnan(p).any(1)
    went = np.where(p == 0.5, 0.5, (p > 0.5).astype(np.float64))
    score = p.mean(1)
    return pd.DataFrame(
        {
            "score": score,
            "worst": np.nan_to_num(p, nan=0.0).mean(1),
            "best": np.nan_to_num(p, nan=1.0).mean(1),
            "missing": np.isnan(p).any(1).astype(np.float64),
            "unparsable": (verdict == "unparsable").any(1).astype(np.float64),
            "says": np.where(np.isnan(score), np.nan, np.where(score == 0.5, 0.5, (score > 0.5).astype(np.float64))),
            "tie": np.where(np.isnan(score), np.nan, (p == 0.5).all(1).astype(np.float64)),
            "first_shown": np.where(compared, (went[:, 0] + 1 - went[:, 1]) / 2, np.nan),
            "inconsistent": np.where(compared, (went[:, 0] != went[:, 1]).astype(np.float64), np.nan),
        },
        index=pd.Index(ordered["at"].to_numpy()[::2], name="at"),
    )


def require_verdicts(
    missing: Sequence[float] | pd.Series,
    most_missing: float,
    opponent: str,
    example_reply: str = "",
    setting: str = "winrate.most_missing",
) -> None:
    """Refuse a win-rate that rests on too few verdicts.

    Args:
        missing: 1 for each comparison without a verdict, 0 for the others.
        most_missing: largest share of them allowed, 0 to 1.
        opponent: whose answers were compared with, for the message.
        example_reply: a reply that holds no verdict, for the message; empty for none.
        setting: which one of `evaluation.settings` holds `most_missing`.

    Raises:
        UserError: more are missing; the message names the remedies.
    """
    lost = int(np.sum(missing))
    if lost > most_missing * len(missing):
        example = f" (one of them: {example_reply!r:.120})" if example_reply else ""
        raise UserError(
            f"the judge gave no verdict on {lost} of {len(missing)} comparisons with {opponent}{example}; at most "
            f"{most_missing:.0%} may be missing, for the win-rate would depend on them. Mend the judge or its template and run "
            f"again, verdicts so far are cached; or raise evaluation.settings.{setting} and read the bounds"
        )
