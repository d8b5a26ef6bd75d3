"""Judges that each break one law, named by what is wrong with them."""

import itertools
import random

import pandas as pd

from dpobench import UserError, judge

CALLS = itertools.count()


def scores(numbers) -> pd.DataFrame:
    return pd.DataFrame({"score": list(numbers)}, dtype=float)


@judge(pointwise=True)
def undocumented(prompts, completions):
    return scores(len(text) for text in completions)


def needs_nothing() -> None:
    """A check that takes no setting."""


@judge(pointwise=True, check=needs_nothing)
def check_takes_no_setting(prompts, completions, *, scale: float = 1.0):
    """Faulty."""
    return scores(scale * len(text) for text in completions)


@judge(pointwise=True, estimate=lambda comparisons, prompt_tokens, answer_tokens: "free")
def estimate_takes_no_setting(prompts, completions, *, scale: float = 1.0):
    """Faulty."""
    return scores(scale * len(text) for text in completions)


def nothing_will_do(*, scale: float = 1.0) -> None:
    """A check that refuses everything."""
    raise UserError(f"a scale of {scale} will not do")


@judge(pointwise=True, check=nothing_will_do)
def check_refuses_its_own_defaults(prompts, completions, *, scale: float = 1.0):
    """Faulty."""
    return scores(scale * len(text) for text in completions)


@judge(pointwise=True)
def refuses_its_own_defaults(prompts, completions, *, model: str = ""):
    """Faulty."""
    if not model:
        raise UserError("name a model")
    return scores(len(text) for text in completions)


@judge(pointwise=True)
def returns_a_list(prompts, completions):
    """Faulty."""
    return [len(text) for text in completions]


@judge(pointwise=True)
def another_column(prompts, completions):
    """Faulty."""
    return pd.DataFrame({"reward": [float(len(text)) for text in completions]})


@judge(pointwise=True)
def drops_empty_answers(prompts, completions):
    """Faulty."""
    return scores(len(text) for text in completions if text)


@judge(pointwise=True)
def fails_on_nothing(prompts, completions):
    """Faulty."""
    most = max(len(text) for text in completions)
    return scores(min(len(text), most) for text in completions)


@judge(pointwise=True)
def scores_in_words(prompts, completions):
    """Faulty."""
    return pd.DataFrame({"score": ["good" if text else "bad" for text in completions]})


@judge(pointwise=True)
def infinite(prompts, completions):
    """Faulty."""
    return scores(1 / len(text) if text else float("inf") for text in completions)


@judge(pointwise=True)
def a_part_in_words(prompts, completions):
    """Faulty."""
    return scores(len(text) for text in completions).assign(reason="long")


@judge(pointwise=False)
def more_than_certain(prompts, first, second):
    """Faulty."""
    return pd.DataFrame({"p_first": [1.0 + len(a) - len(b) for a, b in zip(first, second, strict=True)]})


@judge(pointwise=False)
def no_verdict_with_a_number(prompts, first, second):
    """Faulty."""
    return pd.DataFrame({"p_first": [0.5] * len(prompts), "verdict": ["unparsable"] * len(prompts)})


@judge(pointwise=False)
def unknown_verdict(prompts, first, second):
    """Faulty."""
    return pd.DataFrame({"p_first": [1.0] * len(prompts), "verdict": ["A"] * len(prompts)})


@judge(pointwise=True)
def empties_the_lists(prompts, completions):
    """Faulty."""
    found = scores(len(text) for text in completions)
    completions.clear()
    return found


@judge(pointwise=True)
def random_numbers(prompts, completions):
    """Faulty."""
    return scores(random.SystemRandom().random() for _ in completions)


@judge(pointwise=True)
def place_in_the_list(prompts, completions):
    """Faulty."""
    return scores(range(len(completions)))


@judge(pointwise=True)
def shares_of_the_best(prompts, completions):
    """Faulty."""
    most = max([len(text) for text in completions], default=1) or 1
    return scores(len(text) / most for text in completions)


@judge(pointwise=True, estimate=lambda comparisons: "nothing")
def estimate_takes_one_number(prompts, completions):
    """Faulty."""
    return scores(len(text) for text in completions)
