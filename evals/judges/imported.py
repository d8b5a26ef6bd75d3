"""Verdicts that people, or another judge, have given already."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from dpobench import Prompt, judge
from dpobench.evaluation.annotations import read


def check(*, file: str = "") -> None:
    """Whether the file can be read.

    Raises:
        UserError: as `imported`.
    """
    read(file)


@judge(pointwise=False, check=check)
def imported(prompts: Sequence[Prompt], first: Sequence[str], second: Sequence[str], *, file: str = "") -> pd.DataFrame:
    """Look verdicts up in a file: our own schema, AlpacaEval's `annotations.json`, Arena-Hard's judgements, PandaLM's test set.

    A row of the schema (CSV or JSONL) holds `prompt` (the content of the last message) or `prompt_id`, `first`, `second`, and
    `p_first` or `verdict`; or, as the other judges' verdicts are kept, `a`, `b`, `order`, and `p_a` or `verdict`. Several rows on
    one comparison are averaged; one judged in the other order only is turned round.

    Args:
        prompts: what was asked.
        first: answers shown first.
        second: answers shown second.
        file: the file.

    Returns: `p_first`, `verdict` and `raw` a row; a comparison that the file does not hold has no verdict. `raw` is None where the file
        has the other order alone: nothing is known then of what the order does.

    Raises:
        UserError: the file cannot be read, or a row of it; it is named.
    """
    known = read(file)
    asked = list(zip(prompts, first, second, strict=True))
    found = [known.find(*shown) for shown in asked]
    p_first = np.array([np.nan if p is None else p for p in found], dtype=np.float64)
    said = ["error" if p is None else "tie" if p == 0.5 else "first" if p > 0.5 else "second" for p in found]
    raw = [
        f"not in {known.file.name}" if p is None else f"{p:g}" if known.in_order(*shown) else None
        for p, shown in zip(found, asked, strict=True)
    ]
    return pd.DataFrame({"p_first": p_first, "verdict": said, "raw": pd.Series(raw, dtype=object)})
