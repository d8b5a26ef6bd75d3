"""How often the statistics err: experiments with a known truth, analysed by the very functions the report uses."""

from dataclasses import dataclass

import numpy as np

from dpobench.stats.compare import compare_with_control
from dpobench.stats.crossed import Array, crossed_difference, crossed_mean, share_interval


@dataclass(frozen=True)
class Design:
    """A grid of seeds x prompts, all spreads in the unit of the metric.

    Args:
        seeds: trainings per variant.
        prompts: shared by all variants.
        seed_sd: spread between trainings of one variant.
        method_sd: spread over prompts of the difference between two variants.
        prompt_sd: spread between prompts, shared by all variants.
        residual_sd: spread of one answer.
        effect: true advantage of every variant over the control.
    """

    seeds: int = 3
    prompts: int = 500
    seed_sd: float = 0.02
    method_sd: float = 0.2
    prompt_sd: float = 0.3
    residual_sd: float = 0.3
    effect: float = 0.0

    def arm(self, rng: np.random.Generator, prompts: Array, mean: float) -> Array:
        """Scores [S, N] of one variant on the given prompts."""
        method = rng.normal(0, self.method_sd / np.sqrt(2), self.prompts)
        seed = rng.normal(0, self.seed_sd, (self.seeds, 1))
        residual = rng.normal(0, self.residual_sd, (self.seeds, self.prompts))
        return np.asarray(mean + prompts + method + seed + residual)


@dataclass(frozen=True)
class Errors:
    """Shares over the repetitions.

    Args:
        mean_coverage: intervals of a mean that held the true mean.
        difference_coverage: intervals of a difference that held the true one.
        rejected: single tests with p below alpha.
        familywise: repetitions in which Holm let at least one of the variants through.
    """

    mean_coverage: float
    difference_coverage: float
    rejected: float
    familywise: float


def error_rates(
    design: Design, *, variants: int = 3, repetitions: int = 400, alpha: float = 0.05, seed: int = 0
) -> Errors:
    """Simulate experiments of one design and count.

    Args:
        design: sizes and spreads.
        variants: compared with the control, apart from it.
        repetitions: experiments.
        alpha: level of the tests; intervals have coverage 1 - alpha.
        seed: of the simulation.

    Returns: shares over all repetitions.
    """
    rng = np.random.default_rng(seed)
    held, differed, rejected, any_claim = 0, 0, 0, 0
    for _ in range(repetitions):
        prompts = rng.normal(0, design.prompt_sd, design.prompts)
        control = design.arm(rng, prompts, 0.5)
        arms = {str(i): design.arm(rng, prompts, 0.5 + design.effect) for i in range(variants)}
        mean = crossed_mean([control], 1 - alpha)
        held += mean.low <= 0.5 <= mean.high
        found = list(compare_with_control(arms, control, "control", 1 - alpha).values())
        differed += sum(c.low <= design.effect <= c.high for c in found)
        rejected += sum(c.p < alpha for c in found)
        any_claim += any(c.p_adjusted < alpha for c in found)
    tests = repetitions * variants
    return Errors(held / repetitions, differed / tests, rejected / tests, any_claim / repetitions)


def share_coverage(
    share: float, prompts: int, seeds: int = 1, *, seed_sd: float = 0.0, repetitions: int = 1000, seed: int = 0
) -> float:
    """Coverage of the 95 % interval of a share.

    Args:
        share: the truth, 0 to 1.
        prompts: per seed; the same prompts for every seed.
        seeds: trainings.
        seed_sd: spread of the share between trainings.
        repetitions: experiments.
        seed: of the simulation.

    Returns: share of the intervals that held the truth.
    """
    rng = np.random.default_rng(seed)
    hits = 0
    for _ in range(repetitions):
        mean = np.clip(share + rng.normal(0, seed_sd, (seeds, 1)), 0, 1) if seed_sd else np.full((seeds, 1), share)
        found = share_interval(crossed_mean([(rng.random((seeds, prompts)) < mean).astype(np.float64)]))
        hits += found.low <= share <= found.high
    return hits / repetitions


def paired_type_one(prompts: int, share: float, *, repetitions: int = 1000, seed: int = 0) -> float:
    """How often the paired test of two equal single-seed checkpoints on 1/0.5/0 verdicts says p < 0.05."""
    rng = np.random.default_rng(seed)
    chances = (share * 0.9, 0.1, (1 - share) * 0.9)
    draw = lambda: rng.choice((1.0, 0.5, 0.0), size=(1, prompts), p=chances)  # noqa: E731
    return sum(crossed_difference([draw()], [draw()]).p < 0.05 for _ in range(repetitions)) / repetitions
