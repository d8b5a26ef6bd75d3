"""The recorded batch as some cases need it presented: without a reference, with prompts, with a recorded draw."""

import math
from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from dpobench import Pairs, Side
from tests.variants.golden import Batch, Case


def ratio_of_gamma(given: Mapping[str, Any]) -> float:
    """Target margin of mean log-probabilities, nats per token, of which some projects give the multiple by beta."""
    return given["gamma_beta_ratio"] if "gamma_beta_ratio" in given else given["gamma"] / given["beta"]


def without_reference(pairs: Pairs, batch: Batch, case: Case) -> Pairs:
    """The reference finds everything equally likely."""
    sides = [Side(s.policy, torch.zeros_like(s.reference), s.mask) for s in (pairs.chosen, pairs.rejected)]
    return replace(pairs, chosen=sides[0], rejected=sides[1])


def of_one_token(values: Tensor, reference: float = 0.0) -> Side:
    column = values[:, None]
    return Side(column, torch.full_like(column, reference), torch.ones_like(column, dtype=torch.bool))


def as_means(pairs: Pairs, batch: Batch, case: Case) -> Pairs:
    """Every answer one token with its mean log-probability; the chosen ones with a reference at the target margin."""
    target = ratio_of_gamma(case["params"])
    return replace(
        pairs, chosen=of_one_token(pairs.chosen.mean_logp, target), rejected=of_one_token(pairs.rejected.mean_logp)
    )


def as_the_authors_averaged(pairs: Pairs, batch: Batch, case: Case) -> Pairs:
    """Every answer one token with the mean that the authors' code of ORPO takes of one position too many."""
    means = torch.tensor(batch.recorded["authors_mean_logps"], dtype=torch.float64)
    return replace(pairs, chosen=of_one_token(means[: batch.half]), rejected=of_one_token(means[batch.half :]))


def with_prompts(pairs: Pairs, batch: Batch, case: Case) -> Pairs:
    """The prompts' tokens count too."""
    sides = [
        Side(s.policy, s.reference, s.mask.flip(1).cummax(1).values.flip(1)) for s in (pairs.chosen, pairs.rejected)
    ]
    return replace(pairs, chosen=sides[0], rejected=sides[1])


def first_pair(pairs: Pairs, batch: Batch, case: Case) -> Pairs:
    """The first pair alone."""
    sides = [Side(s.policy[:1], s.reference[:1], s.mask[:1]) for s in (pairs.chosen, pairs.rejected)]
    return replace(pairs, chosen=sides[0], rejected=sides[1])


def stepped(pairs: Pairs, batch: Batch, case: Case) -> Pairs:
    """Extrapolated and interpolated log-probabilities whose margins rise (1), fall (-1) or do neither (0), as recorded."""
    steps = torch.tensor(case["params"]["steps"], dtype=torch.float64)
    # On either side of the present margin: above and below, below and above, above and above.
    away = torch.where(steps >= 0, 1.0, -1.0)
    towards = torch.where(steps > 0, -1.0, 1.0)
    chosen = pairs.chosen
    moved = {
        name: chosen.policy.detach() + (by / chosen.length)[:, None]
        for name, by in (("extrapolated", away), ("interpolated", towards))
    }
    kept = {name: pairs.rejected.policy.detach() for name in moved}
    return replace(pairs, chosen=replace(chosen, extras=moved), rejected=replace(pairs.rejected, extras=kept))


def drawn(pairs: Pairs, batch: Batch, case: Case) -> Pairs:
    """Noise that keeps the tokens that SamPO's own draw kept, found as the one choice with the recorded sums."""
    shared = torch.minimum(pairs.chosen.length, pairs.rejected.length).int().tolist()
    policy, rows = batch.policy.detach(), []
    for row, count in enumerate([*shared, *shared]):
        tokens = torch.cat([pairs.chosen.mask, pairs.rejected.mask])[row].nonzero()[:, 0].tolist()
        sums = case["policy_logps"][row], case["ref_logps_same_draw"][row]
        choices = [
            kept
            for kept in map(list, combinations(tokens, count))
            if math.isclose(float(policy[row, kept].sum()), sums[0], abs_tol=1e-4)
            and math.isclose(float(batch.reference[row, kept].sum()), sums[1], abs_tol=1e-4)
        ]
        assert len(choices) == 1, f"{len(choices)} draws of row {row} have the recorded sums"
        rows.append(choices[0])
    noise = torch.full(batch.mask.shape, 0.1, dtype=torch.float64)
    for row, kept in enumerate(rows):
        noise[row, kept] = 0.9
    sides = [
        replace(side, extras={"noise": part})
        for side, part in zip((pairs.chosen, pairs.rejected), noise.split(batch.half), strict=True)
    ]
    return replace(pairs, chosen=sides[0], rejected=sides[1])
