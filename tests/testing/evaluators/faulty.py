"""Evaluators that each break one law, named by what is wrong with them."""

import numpy as np
import pandas as pd
import torch

from dpobench import Checkpoint, HeldOut, Metric, evaluator, score_rows

LENGTH = Metric("letters", "none", label="length")
KEPT: list[int] = []


def lengths(held_out: HeldOut, values=None) -> pd.DataFrame:
    frame = held_out.samples
    numbers = [len(text) for text in frame["text"]] if values is None else values
    return score_rows(frame["prompt"].tolist(), "length", numbers, draws=frame["draw"].tolist())


@evaluator(metrics={"length": LENGTH})
def undocumented(checkpoint: Checkpoint, held_out: HeldOut) -> pd.DataFrame:
    return lengths(held_out)


@evaluator(metrics={})
def without_metrics(checkpoint: Checkpoint, held_out: HeldOut) -> pd.DataFrame:
    """Faulty."""
    return lengths(held_out)


@evaluator(metrics={"length": Metric("letters", "none")})
def without_label(checkpoint: Checkpoint, held_out: HeldOut) -> pd.DataFrame:
    """Faulty."""
    return lengths(held_out)


@evaluator(metrics={"length": Metric("letters", "up", label="length")})
def unknown_direction(checkpoint: Checkpoint, held_out: HeldOut) -> pd.DataFrame:
    """Faulty."""
    return lengths(held_out)


@evaluator(metrics={"length": LENGTH}, needs=("jugde",))
def unknown_need(checkpoint: Checkpoint, held_out: HeldOut) -> pd.DataFrame:
    """Faulty."""
    return lengths(held_out)


@evaluator(metrics={"length": LENGTH}, at_reference={"lenght": 0.0})
def unknown_at_reference(checkpoint: Checkpoint, held_out: HeldOut) -> pd.DataFrame:
    """Faulty."""
    return lengths(held_out)


@evaluator(metrics={"length": LENGTH})
def reads_an_undeclared_judge(checkpoint: Checkpoint, held_out: HeldOut) -> pd.DataFrame:
    """Faulty."""
    return lengths(held_out, held_out.judge(held_out.prompts, held_out.samples["text"].tolist())["score"])


@evaluator(metrics={"length": LENGTH}, needs=("judge",))
def expects_a_judge_that_scores(checkpoint: Checkpoint, held_out: HeldOut) -> pd.DataFrame:
    """Faulty."""
    asked = [prompt for prompt in held_out.prompts for _ in range(2)]
    return lengths(held_out, held_out.judge(asked, held_out.samples["text"].tolist())["score"])


@evaluator(metrics={"length": LENGTH}, needs=("on_policy",))
def never_reads_on_policy_samples(checkpoint: Checkpoint, held_out: HeldOut) -> pd.DataFrame:
    """Faulty."""
    if not held_out.sampling.is_policy:
        raise ValueError("samples of another temperature")
    return lengths(held_out)


@evaluator(metrics={"length": LENGTH})
def returns_a_dictionary(checkpoint: Checkpoint, held_out: HeldOut) -> dict:
    """Faulty."""
    return {"length": 3.0}


@evaluator(metrics={"length": LENGTH})
def other_columns(checkpoint: Checkpoint, held_out: HeldOut) -> pd.DataFrame:
    """Faulty."""
    return lengths(held_out).rename(columns={"value": "score"})


@evaluator(metrics={"size": LENGTH})
def undeclared_metric(checkpoint: Checkpoint, held_out: HeldOut) -> pd.DataFrame:
    """Faulty."""
    return lengths(held_out)


@evaluator(metrics={"length": LENGTH})
def draws_are_not_numbered(checkpoint: Checkpoint, held_out: HeldOut) -> pd.DataFrame:
    """Faulty."""
    return lengths(held_out).assign(draw=0)


@evaluator(metrics={"length": LENGTH})
def not_a_number(checkpoint: Checkpoint, held_out: HeldOut) -> pd.DataFrame:
    """Faulty."""
    return lengths(held_out, [np.nan] * len(held_out.samples))


@evaluator(metrics={"length": LENGTH, "breadth": LENGTH})
def never_produced(checkpoint: Checkpoint, held_out: HeldOut) -> pd.DataFrame:
    """Faulty."""
    return lengths(held_out)


@evaluator(metrics={"length": LENGTH})
def random_numbers(checkpoint: Checkpoint, held_out: HeldOut) -> pd.DataFrame:
    """Faulty."""
    return lengths(held_out, np.random.default_rng().random(len(held_out.samples)))


@evaluator(metrics={"length": LENGTH})
def counts_its_calls(checkpoint: Checkpoint, held_out: HeldOut) -> pd.DataFrame:
    """Faulty."""
    KEPT.append(1)
    return lengths(held_out, [len(KEPT)] * len(held_out.samples))


@evaluator(metrics={"length": LENGTH})
def adds_a_column(checkpoint: Checkpoint, held_out: HeldOut) -> pd.DataFrame:
    """Faulty."""
    held_out.samples["length"] = held_out.samples["text"].str.len()
    return lengths(held_out)


@evaluator(metrics={"length": LENGTH}, needs=("pairs",))
def shifts_the_reference(checkpoint: Checkpoint, held_out: HeldOut) -> pd.DataFrame:
    """Faulty."""
    for pair in held_out.pairs:
        pair.chosen_reference[:] -= 1
    return lengths(held_out)


@evaluator(metrics={"length": LENGTH})
def trains_the_policy(checkpoint: Checkpoint, held_out: HeldOut) -> pd.DataFrame:
    """Faulty."""
    with torch.no_grad():
        next(checkpoint.policy.parameters()).mul_(0.999)
    return lengths(held_out)


@evaluator(metrics={"length": LENGTH})
def counts_the_place(checkpoint: Checkpoint, held_out: HeldOut) -> pd.DataFrame:
    """Faulty."""
    return lengths(held_out, range(len(held_out.samples)))


@evaluator(metrics={"length": LENGTH})
def the_first_prompt_only(checkpoint: Checkpoint, held_out: HeldOut) -> pd.DataFrame:
    """Faulty."""
    return lengths(held_out).head(1)


@evaluator(metrics={"length": LENGTH}, at_reference={"length": 0.0})
def not_the_value_at_the_reference(checkpoint: Checkpoint, held_out: HeldOut) -> pd.DataFrame:
    """Faulty."""
    return lengths(held_out)


@evaluator(metrics={"length": LENGTH}, at_reference={"length": 0.0})
def nothing_at_the_reference(checkpoint: Checkpoint, held_out: HeldOut) -> pd.DataFrame:
    """Faulty."""
    return lengths(held_out) if not checkpoint.is_reference else lengths(held_out).head(0)


@evaluator(metrics={"length": LENGTH})
def matches_by_place(checkpoint: Checkpoint, held_out: HeldOut) -> pd.DataFrame:
    """Faulty."""
    longer = held_out.samples["text"].str.len() - held_out.reference_samples["text"].str.len()
    return lengths(held_out, longer.tolist())


@evaluator(metrics={"length": LENGTH})
def changes_the_reference(checkpoint: Checkpoint, held_out: HeldOut) -> pd.DataFrame:
    """Faulty."""
    with torch.no_grad():
        for weight in checkpoint.reference.parameters():
            weight += 0.1
    return lengths(held_out)


@evaluator(metrics={"length": LENGTH})
def leaves_the_policy_in_training_mode(checkpoint: Checkpoint, held_out: HeldOut) -> pd.DataFrame:
    """Faulty."""
    checkpoint.policy.train()
    return lengths(held_out)


@evaluator(metrics={"*": LENGTH})
def names_known_late_and_no_rows(checkpoint: Checkpoint, held_out: HeldOut) -> pd.DataFrame:
    """Faulty."""
    return score_rows([], "length", [])
