"""Verdicts that people, or another judge, have given already."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from dpobench import Prompt, judge
from dpobench.evaluation.annotations import read
from dpobench.evaluation.pairwise import verdicts_of


def check(*, file: str = "") -> None:
    """Whether the file can be read.

    Raises:
        UserError: as `imported`.
    """
    read(file)


@judge(pointwise=False, check=check)
def imported(prompts: Sequence[Prompt], first: Sequence[str], second: Sequence[str], *, file: str = "") -> pd.DataFrame:
    """Look verdicts up in a file: the schema below, AlpacaEval's `annotations.json`, Arena-Hard's judgements, PandaLM's test set.

    A row of the schema (CSV or JSONL) holds `prompt` (the content of the last message) or `prompt_id`, `first`, `second`, and
    `p_first` or `verdict`; or, as the verdicts of other judges are written, `a`, `b`, `order`, and `p_a` or `verdict`. Several rows
    on one comparison are averaged; one judged in the other order only is flipped.

    Args:
        prompts: N requests that were answered.
        first: answers shown first.
        second: answers shown second.
        file: the file.

    Returns: `p_first`, `verdict` and `raw` a row; a comparison that the file does not hold has no verdict. `raw` is None where the file
        has the other order alone: nothing is known then of what the order does.

    Raises:
        UserError: the file cannot be read, or a row of it; it is named.
    """
    annotations = read(file)
    comparisons = list(zip(prompts, first, second, strict=True))
    shares = [annotations.find(*shown) for shown in comparisons]
    p_first = np.array([np.nan if p is None else p for p in shares], dtype=np.float64)
    raw = [
        f"not in {annotations.file.name}" if p is None else f"{p:g}" if annotations.in_order(*shown) else None
        for p, shown in zip(shares, comparisons, strict=True)
    ]
    verdict = verdicts_of(p_first, missing="error")
    return pd.DataFrame({"p_first": p_first, "verdict": verdict, "raw": pd.Series(raw, dtype=object)})
