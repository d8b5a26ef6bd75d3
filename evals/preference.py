"""Whether the policy ranks held-out pairs as people did, and what happened to the log-probabilities of both sides."""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd

from dpobench import Checkpoint, DpobenchError, HeldOut, Metric, evaluator, score_rows
from dpobench.evaluation.heldout import pair_prompts
from dpobench.losses.standalone import loss_preferences
from dpobench.models.logprobs import score_sequences

Logps: TypeAlias = Sequence[npt.NDArray[np.float32]]
"""Log-probabilities of the tokens of N completions, nats."""
Array: TypeAlias = npt.NDArray[np.float64]


@evaluator(
    metrics={
        "accuracy": Metric("share", "higher", "preference", "held-out accuracy"),
        "mean_accuracy": Metric("share", "higher", label="held-out accuracy per token"),
        "margin": Metric("nats", "higher", label="margin"),
        "mean_margin": Metric("nats per token", "higher", label="margin per token"),
        "chosen_shift": Metric("nats", "none", label="change of log-probability, chosen"),
        "rejected_shift": Metric("nats", "none", label="change of log-probability, rejected"),
        "own_accuracy": Metric("share", "higher", label="held-out accuracy by the loss itself"),
        "saturated": Metric("share", "none", label="saturated pairs"),
        "length_difference": Metric("tokens", "none", label="chosen minus rejected length"),
    },
    needs=("pairs",),
    within=True,
    at_reference={
        "accuracy": 0.5,
        "mean_accuracy": 0.5,
        "margin": 0.0,
        "mean_margin": 0.0,
        "chosen_shift": 0.0,
        "rejected_shift": 0.0,
    },
)
def preference(checkpoint: Checkpoint, held_out: HeldOut, *, budget: int = 8192) -> pd.DataFrame:
    """Implicit-reward accuracy, margins and displacement on held-out pairs.

    Args:
        checkpoint: the policy to score.
        held_out: pairs with the reference's log-probabilities.
        budget: most tokens of a padded batch.

    Returns: one row per pair and metric; pairs of one prompt share its hash and are numbered as draws, for they fall on one side
        of the selection/test split and are no independent units. `chosen_shift` and `rejected_shift` are policy minus
        reference log-probability, nats; `margin` is their difference, nats; `mean_margin` the difference of per-token means, nats
        per token. For the reference against itself all four are exactly 0. `accuracy` and `mean_accuracy` are 1 where `margin`
        and `mean_margin` are positive, 0 where they are negative, 0.5 where they are 0, as for the reference. `length_difference`
        is chosen minus rejected length in tokens, by which a classifier of length alone would decide. `own_accuracy` and
        `saturated` are 1 where the loss itself prefers the chosen answer and where its gradient has nearly vanished (see
        `dpobench.losses.standalone`). They exist for checkpoints whose loss is known and needs log-probabilities only, not for the
        reference, which has no loss.

    Raises:
        DpobenchError: a pair comes without the reference's log-probabilities.
    """
    pairs = held_out.pairs
    for pair in pairs:
        if pair.chosen_reference is None or pair.rejected_reference is None:
            raise DpobenchError(f"held-out pair {pair.id} has no log-probabilities of the reference")
    chosen_reference = [np.asarray(pair.chosen_reference) for pair in pairs]
    rejected_reference = [np.asarray(pair.rejected_reference) for pair in pairs]
    chosen_policy, rejected_policy = chosen_reference, rejected_reference
    if not checkpoint.is_reference:
        both = [(p.prompt, p.chosen) for p in pairs] + [(p.prompt, p.rejected) for p in pairs]
        scored = score_sequences(checkpoint.policy, both, budget)
        chosen_policy, rejected_policy = scored[: len(pairs)], scored[len(pairs) :]
    chosen, rejected = _shift(chosen_policy, chosen_reference), _shift(rejected_policy, rejected_reference)
    chosen_length = np.array([len(pair.chosen) for pair in pairs])
    rejected_length = np.array([len(pair.rejected) for pair in pairs])
    margin, mean_margin = chosen - rejected, chosen / chosen_length - rejected / rejected_length
    values = {
        "accuracy": _right(margin),
        "mean_accuracy": _right(mean_margin),
        "margin": margin,
        "mean_margin": mean_margin,
        "chosen_shift": chosen,
        "rejected_shift": rejected,
        "length_difference": chosen_length - rejected_length,
    }
    if not checkpoint.is_reference:
        by_loss = loss_preferences(
            checkpoint.run, (chosen_policy, rejected_policy), (chosen_reference, rejected_reference)
        )
        values |= (
            {"own_accuracy": by_loss.prefers_chosen, "saturated": by_loss.saturated} if by_loss is not None else {}
        )
    prompts, draws = pair_prompts(pairs)
    tables = [score_rows(prompts, metric, numbers, draws=draws) for metric, numbers in values.items()]
    return pd.concat(tables, ignore_index=True)


def _shift(policy: Logps, reference: Logps) -> Array:
    """Policy minus reference log-probability of each completion, nats."""
    return np.array([(p.astype(np.float64) - q).sum() for p, q in zip(policy, reference, strict=True)])


def _right(margin: Array) -> Array:
    """1 where a margin is positive, 0 where it is negative, 0.5 where it is 0."""
    return np.asarray((np.sign(margin) + 1) / 2)
