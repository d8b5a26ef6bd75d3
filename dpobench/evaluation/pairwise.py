"""Verdicts of a judge that compares two answers: both orders always, one more try where it said nothing, nothing guessed.

Judges prefer a place as well as an answer, so the mean over both orders is the score, and a comparison that lacks one order
has none. A verdict that stays away is missing, neither a win nor a loss; what it could have been is told by two bounds.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from dpobench.data.prompts import Prompt
from dpobench.errors import DpobenchError, UserError

Pairwise = Callable[[Sequence[Prompt], Sequence[str], Sequence[str]], Any]
Shown = tuple[Prompt, str, str]
SHOWN = ("first", "second", "tie", "unparsable", "error")
# Of `compare`, in this order; two rows a comparison.
COLUMNS = ("at", "order", "p_a", "verdict", "raw", "tokens", "latency", "cost")
# Of the verdicts that lie beside the scores.
KEPT = ("prompt", "draw", "a", "b", *COLUMNS[1:])
_TYPES = {
    "p_first": np.float64,
    "verdict": object,
    "raw": object,
    "tokens": np.int64,
    "latency": np.float64,
    "cost": np.float64,
}
_SAME = {"p_first": 0.5, "verdict": "tie", "raw": None, "tokens": 0, "latency": 0.0, "cost": 0.0}


def compare(pairwise: Pairwise, prompts: Sequence[Prompt], a: Sequence[str], b: Sequence[str]) -> pd.DataFrame:
    """Ask a judge about N pairs of answers, each in both orders.

    Equal comparisons are asked once. Identical answers tie without a call. Where a verdict is missing the judge is asked once more.

    Args:
        pairwise: the judge, as `HeldOut.pairwise`.
        prompts: what was asked, N of them.
        a: one answer to each.
        b: the other.

    Returns: 2N rows: `at`, number of the pair; `order`, 0 where a was shown first and 1 where b was; `p_a`, probability that a is
        better, NaN where there is no verdict; `verdict`, one of a, b, tie, unparsable, error; `raw`, the judge's words, None
        where it was not asked; `tokens`, `latency` in seconds and `cost` over both tries.

    Raises:
        DpobenchError: the judge returned something else than verdicts.
    """
    shown = [(prompt, first, second) for prompt, first, second in zip(prompts, a, b, strict=True)]
    turned = [(prompt, second, first) for prompt, first, second in shown]
    wanted = {_name(one): one for one in [*shown, *turned] if one[1] != one[2]}
    said = _asked(pairwise, list(wanted.values())).to_dict("records")
    found = dict(zip(wanted, said, strict=True))
    rows = []
    for at, both in enumerate(zip(shown, turned, strict=True)):
        for order, one in enumerate(both):
            told = found.get(_name(one), _SAME)
            p_a = 1 - told["p_first"] if order else told["p_first"]
            verdict = {"first": "ab"[order], "second": "ba"[order]}.get(told["verdict"], told["verdict"])
            rows.append([at, order, p_a, verdict, *(told[name] for name in COLUMNS[4:])])
    types = {name: kind for name, kind in _TYPES.items() if name in COLUMNS}
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"at": np.int64, "order": np.int64, "p_a": float, **types})


def _name(one: Shown) -> tuple[str, str, str]:
    return one[0].id, one[1], one[2]


def _asked(pairwise: Pairwise, shown: Sequence[Shown]) -> pd.DataFrame:
    """The judge's verdicts on comparisons as shown; those without one are asked for a second time."""
    found = _once(pairwise, shown)
    again = np.flatnonzero(found["p_first"].isna()).tolist()
    if again:
        second = _once(pairwise, [shown[at] for at in again]).set_axis(again)
        for name in ("tokens", "latency", "cost"):
            second[name] += found.loc[again, name]
        found.loc[again] = second
    return found


def _once(pairwise: Pairwise, shown: Sequence[Shown]) -> pd.DataFrame:
    if not shown:
        return pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in _TYPES.items()})
    prompts, first, second = zip(*shown, strict=True)
    found = pairwise(prompts, first, second)
    if not isinstance(found, pd.DataFrame) or "p_first" not in found or len(found) != len(shown):
        what = f"columns {list(found)}, {len(found)} rows" if isinstance(found, pd.DataFrame) else type(found).__name__
        raise DpobenchError(
            f"the judge returned {what} for {len(shown)} comparisons; a table with column 'p_first' and a row each is expected"
        )
    table = found.reset_index(drop=True)
    p_first = table["p_first"].to_numpy(dtype=np.float64)
    if "verdict" not in table:
        table["verdict"] = _named(p_first)
    for name in _TYPES:
        if name not in table:
            table[name] = _SAME[name] if name != "raw" else ""
    _check(p_first, table["verdict"].tolist())
    return table[list(_TYPES)].astype(_TYPES)


def _named(p_first: np.ndarray) -> list[str]:
    return ["unparsable" if np.isnan(p) else "tie" if p == 0.5 else "first" if p > 0.5 else "second" for p in p_first]


def _check(p_first: np.ndarray, verdicts: Sequence[Any]) -> None:
    for p, verdict in zip(p_first.tolist(), verdicts, strict=True):
        if verdict not in SHOWN or not (np.isnan(p) or 0 <= p <= 1) or np.isnan(p) != (verdict in SHOWN[3:]):
            raise DpobenchError(
                f"the judge returned p_first = {p} with verdict {verdict!r}; a number from 0 to 1 with first, second or tie is "
                "expected, or NaN with unparsable or error"
            )


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """What the two orders of each comparison come to.

    Args:
        rows: from `compare`.

    Returns: a row per comparison, by `at`: `score`, mean of `p_a` over the orders, NaN where one is missing; `worst` and
        `best`, the same with each missing verdict counted as lost or as won; `missing` and `unparsable`, 1 where either order
        is; `says`, 1 for a, 0 for b, 0.5 for neither, by the score; `tie`, 1 where both orders tie, NaN where one is
        missing; `first_shown`, the share of the two verdicts that went to the answer shown first, a tie being half;
        `inconsistent`, 1 where the two orders named different answers. The last two are NaN for identical answers, where a
        verdict is missing, and where the judge was not asked in both orders.

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


def require(
    missing: Sequence[float], most: float, whom: str, said: str = "", setting: str = "winrate.most_missing"
) -> None:
    """Refuse a win-rate that rests on too few verdicts.

    Args:
        missing: 1 for each comparison without a verdict, 0 for the others.
        most: largest share allowed.
        whom: what was compared with.
        said: what stood in place of a verdict.
        setting: which one of `evaluation.settings` holds `most`.

    Raises:
        UserError: more are missing; the message says what to do.
    """
    lost = int(np.sum(missing))
    if lost > most * len(missing):
        example = f" (one of them: {said!r:.120})" if said else ""
        raise UserError(
            f"the judge gave no verdict on {lost} of {len(missing)} comparisons with {whom}{example}; at most {most:.0%} may be "
            "missing, for the win-rate would depend on them. Mend the judge or its template and run again, verdicts so far are "
            f"kept; or raise evaluation.settings.{setting} and read the bounds"
        )
