"""Judges that keep every law."""

import random

import pandas as pd

from dpobench import UserError, judge


def check(*, scale: float = 1.0) -> None:
    """Refuse a scale of zero."""
    if scale == 0:
        raise UserError("scale = 0 scores nothing")


@judge(pointwise=True, check=check)
def length(prompts, completions, *, scale: float = 1.0):
    """The longer the better; nothing is said of an empty answer."""
    values = [scale * len(text) if text else float("nan") for text in completions]
    return pd.DataFrame({"score": values, "letters": [float(len(text)) for text in completions]})


@judge(pointwise=False)
def shorter(prompts, first, second):
    """The shorter answer, and no verdict on an empty one."""
    gaps = [len(b) - len(a) if a and b else None for a, b in zip(first, second, strict=True)]
    p_first = [float("nan") if gap is None else 0.5 if gap == 0 else float(gap > 0) for gap in gaps]
    named = {None: "error", 0: "tie"}
    verdicts = [named.get(gap, "first" if (gap or 0) > 0 else "second") for gap in gaps]
    return pd.DataFrame({"p_first": pd.Series(p_first, dtype=float), "verdict": pd.Series(verdicts, dtype=object)})


@judge(pointwise=True, deterministic=False)
def in_a_mood(prompts, completions):
    """A judge that says that it is not the same twice."""
    return pd.DataFrame({"score": [random.SystemRandom().random() for _ in completions]}, dtype=float)
