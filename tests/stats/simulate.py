"""How often the statistics err: experiments with a known truth, analysed by the very functions the report uses.

Normal scores are drawn as their mean squares, which is exact and makes thousands of experiments cheap; verdicts of 0, one half
and 1 are drawn one by one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import special, stats

from dpobench.stats.compare import holm
from dpobench.stats.crossed import (
    Array,
    Estimate,
    Spread,
    between_df,
    crossed_difference,
    crossed_mean,
    share_difference,
    share_interval,
)
from dpobench.stats.tradeoff import best_weights


@dataclass(frozen=True)
class Design:
    """A grid of seeds x prompts of normal scores, all spreads in the unit of the metric.

    Args:
        seeds: trainings per variant; with one, what is estimated is that of the checkpoints.
        prompts: shared by all variants.
        seed_sd: spread between trainings of one variant.
        method_sd: spread over prompts of the difference between two variants.
        prompt_sd: spread between prompts, shared by all variants.
        residual_sd: spread of one answer.
        effect: true advantage of every variant over the control.
        steadiness: spread between trainings of the control over that of the variants.
    """

    seeds: int = 3
    prompts: int = 500
    seed_sd: float = 0.02
    method_sd: float = 0.2
    prompt_sd: float = 0.3
    residual_sd: float = 0.3
    effect: float = 0.0
    steadiness: float = 1.0

    def arm(self, rng: np.random.Generator, prompts: Array, mean: float) -> Array:
        """Scores [S, N] of one variant on the given prompts."""
        method = rng.normal(0, self.method_sd / np.sqrt(2), self.prompts)
        seed = rng.normal(0, self.seed_sd, (self.seeds, 1))
        residual = rng.normal(0, self.residual_sd, (self.seeds, self.prompts))
        return np.asarray(mean + prompts + method + seed + residual)


@dataclass(frozen=True)
class Experiments:
    """Many experiments of one design: estimates with the parts of their errors, the control first.

    Args:
        means: of each arm, shape [R, K], with the prompts' common luck.
        within: covariances [R, K, K] over prompts of the arms' seed averages, prompts' common part included.
        between: B of each arm, shape [R, K].
        residual: C of each arm, shape [R, K].
        design: what they were drawn from.
    """

    means: Array
    within: Array
    between: Array
    residual: Array
    design: Design

    @cached_property
    def mean(self) -> tuple[Array, Spread]:
        """Estimate of the control's mean and its parts, each of shape [R]."""
        d = self.design
        sampled = self.within[:, 0, 0] / d.prompts
        if d.seeds == 1:
            return self.means[:, 0], Spread(sampled, d.prompts - 1.0)
        spread = Spread(sampled, d.prompts - 1.0, self.between[:, 0], d.seeds - 1.0, self.residual[:, 0])
        return self.means[:, 0], spread

    def difference(self, variant: int) -> tuple[Array, Spread]:
        """Estimate of a variant less the control, and its parts, each of shape [R]."""
        d, w = self.design, self.within
        sampled = (w[:, 0, 0] + w[:, variant, variant] - 2 * w[:, 0, variant]) / d.prompts
        value = self.means[:, variant] - self.means[:, 0]
        if d.seeds == 1:
            return value, Spread(sampled, d.prompts - 1.0)
        both = [self.between[:, 0], self.between[:, variant]]
        rest = self.residual[:, 0] + self.residual[:, variant]
        return value, Spread(sampled, d.prompts - 1.0, sum(both), between_df(both, [d.seeds] * 2), rest)


def experiments(design: Design, variants: int, repetitions: int, rng: np.random.Generator) -> Experiments:
    """Draw experiments of one design, as the mean squares of normal scores."""
    d, count = design, variants + 1
    alone = d.method_sd**2 / 2 + d.residual_sd**2 / d.seeds
    covariance = np.full((count, count), d.prompt_sd**2) + np.eye(count) * alone
    within = stats.wishart(d.prompts - 1, covariance / (d.prompts - 1)).rvs(repetitions, random_state=rng)
    within = np.asarray(within).reshape(repetitions, count, count)
    means = rng.multivariate_normal(np.zeros(count), covariance / d.prompts, repetitions)
    means = means + np.append(0.0, np.full(variants, d.effect))
    rest = np.full(count, d.residual_sd**2 / (d.seeds * d.prompts))
    between, residual = np.zeros((2, repetitions, count))
    if d.seeds > 1:
        sd = d.seed_sd * np.append(d.steadiness, np.ones(variants))
        means += rng.normal(0, 1, (repetitions, count)) * sd / np.sqrt(d.seeds)
        between = (sd**2 / d.seeds + rest) * _mean_square(rng, d.seeds - 1, (repetitions, count))
        residual = rest * _mean_square(rng, (d.seeds - 1) * (d.prompts - 1), (repetitions, count))
    return Experiments(means, within, between, residual, d)


def _mean_square(rng: np.random.Generator, freedom: int, shape: tuple[int, int]) -> Array:
    return np.asarray(rng.chisquare(freedom, shape) / freedom)


@dataclass(frozen=True)
class Errors:
    """Shares over the repetitions.

    Args:
        mean_coverage: intervals of a mean that held the true mean.
        mean_width: mean half width of these, in true standard errors.
        difference_coverage: intervals of a difference that held the true one.
        difference_width: mean half width of these, in true standard errors.
        rejected: single tests with p below alpha.
        familywise: repetitions in which Holm let anything through, by the number of variants tested: the first one, two, ...
        equivalent: two one-sided tests that claimed equivalence where the true difference was the margin itself.
    """

    mean_coverage: float
    mean_width: float
    difference_coverage: float
    difference_width: float
    rejected: float
    familywise: Mapping[int, float]
    equivalent: float


def error_rates(
    design: Design, *, variants: int = 3, repetitions: int = 2000, alpha: float = 0.05, seed: int = 0
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
    drawn = experiments(design, variants, repetitions, np.random.default_rng(seed))
    value, spread = drawn.mean
    half = _half(spread, alpha)
    true = _error(design, alone=True)
    held, width = np.mean(np.abs(value) <= half), np.mean(half) / true
    differences = [drawn.difference(variant) for variant in range(1, variants + 1)]
    halves = [_half(spread, alpha) for _, spread in differences]
    off = [np.abs(value - design.effect) for value, _ in differences]
    # A test rejects where its interval ends before zero; Holm claims anything at all where one does at alpha over their number.
    families = {}
    for count in range(1, variants + 1):
        first = [np.abs(value) > _half(spread, alpha / count) for value, spread in differences[:count]]
        families[count] = float(np.mean(np.any(first, axis=0)))
    # Were the margin the true difference, equivalence is claimed where the estimate falls this far short of it; a margin so wide
    # that its other end plays no part is the case in which the claim is easiest.
    short = [value - design.effect < -_half(spread, 2 * alpha) for value, spread in differences]
    return Errors(
        float(held),
        float(width),
        float(np.mean([o <= half for o, half in zip(off, halves, strict=True)])),
        float(np.mean(halves) / _error(design)),
        float(np.mean([np.abs(value) > half for (value, _), half in zip(differences, halves, strict=True)])),
        families,
        float(np.mean(short)),
    )


def _half(spread: Spread, alpha: float) -> Array:
    return np.asarray(spread.quantile(alpha) * np.sqrt(spread.variance))


def _error(d: Design, alone: bool = False) -> float:
    """True standard error of a mean or of a difference."""
    seed = d.seed_sd**2 / d.seeds if d.seeds > 1 else 0.0
    rest = d.residual_sd**2 / (d.seeds * d.prompts)
    one = d.method_sd**2 / 2 / d.prompts + rest
    if alone:
        return float(np.sqrt(d.prompt_sd**2 / d.prompts + one + seed * d.steadiness**2))
    return float(np.sqrt(2 * one + seed * (1 + d.steadiness**2)))


@dataclass(frozen=True)
class Verdicts:
    """Experiments whose scores are verdicts against a fixed opponent.

    Args:
        share: true win-rate, ties left out, 0 to 1.
        seeds: trainings per variant.
        prompts: shared by all.
        seed_sd: spread of the win-rate between trainings.
        ties: share of verdicts of one half.
        likeness: correlation over trainings and variants of what decides a prompt.
        soft: whether the judge gives a probability in place of a verdict.
        advantage: of the variant over the control, added to its share.
    """

    share: float = 0.8
    seeds: int = 3
    prompts: int = 500
    seed_sd: float = 0.02
    ties: float = 0.1
    likeness: float = 0.3
    soft: bool = False
    advantage: float = 0.0

    def truth(self, share: float) -> float:
        """Mean score of an arm."""
        return (1 - self.ties) * share + self.ties / 2

    def arm(self, rng: np.random.Generator, shared: Array, share: float) -> Array:
        """Scores [S, N]; `shared` are standard normal, one per prompt."""
        count = (self.seeds, self.prompts)
        level = np.full((self.seeds, 1), share)
        # With one seed the checkpoint itself is the object: its share is the truth.
        if self.seeds > 1 and self.seed_sd:
            size = share * (1 - share) / self.seed_sd**2 - 1
            level = rng.beta(share * size, (1 - share) * size, (self.seeds, 1))
        drawn = np.sqrt(self.likeness) * shared + np.sqrt(1 - self.likeness) * rng.normal(size=count)
        if self.soft:
            # A smooth score with the same mean as the verdict: the threshold is drawn again, and integrated over.
            edge, inner = special.ndtri(level), np.sqrt(0.5)
            score = special.ndtr((edge - inner * drawn) / np.sqrt(1 - inner**2))
        else:
            score = (drawn < special.ndtri(level)).astype(np.float64)
        return np.asarray(np.where(rng.random(count) < self.ties, 0.5, score))


@dataclass(frozen=True)
class VerdictErrors:
    """Shares over the repetitions, and mean half widths in the unit of a share.

    Args:
        share_coverage: intervals of a share that held it.
        share_width: mean half width of these.
        difference_coverage: intervals of the difference of two shares that held it.
        difference_width: mean half width of these.
        rejected: tests of the difference with p below 0.05; a type-I error where there is no advantage.
    """

    share_coverage: float
    share_width: float
    difference_coverage: float
    difference_width: float
    rejected: float


def verdict_errors(design: Verdicts, *, repetitions: int = 2000, seed: int = 0) -> VerdictErrors:
    """Simulate a control and a variant and count, on scores as a judge gives them."""
    rng, d = np.random.default_rng(seed), design
    counted = np.zeros((repetitions, 5))
    other = d.share + d.advantage
    for row in counted:
        shared = rng.normal(size=d.prompts)
        control, variant = d.arm(rng, shared, d.share), d.arm(rng, shared, other)
        mean = share_interval(crossed_mean([control]))
        difference = share_difference(crossed_difference([variant], [control]))
        gap = d.truth(other) - d.truth(d.share)
        row[:2] = mean.low <= d.truth(d.share) <= mean.high, (mean.high - mean.low) / 2
        row[2:4] = difference.low <= gap <= difference.high, (difference.high - difference.low) / 2
        # The interval ends where the test turns, and is much cheaper than its p-value.
        row[4] = not difference.low <= 0 <= difference.high
    return VerdictErrors(*(float(x) for x in counted.mean(0)))


def familywise_under_partial_truth(design: Design, null: int, real: int, *, repetitions: int = 2000) -> float:
    """Share of experiments in which Holm claims a difference for one of the `null` variants, `real` others differing by 1."""
    drawn = experiments(design, null + real, repetitions, np.random.default_rng(1))
    p = np.stack([drawn.difference(v)[1].p(drawn.difference(v)[0] + (v > null)) for v in range(1, null + real + 1)], 1)
    return float(np.mean([min(holm(list(row))[:null]) < 0.05 for row in p]))


def best_of(values: Array, ks: Sequence[int], by: Array | None = None) -> list[Estimate]:
    """Expected value of the best of k draws.

    Args:
        values: shape [N, n], n independent draws for each of N prompts.
        ks: tries, each 1 to n.
        by: shape [N, n], what the best is picked by; the values themselves where it is not given. With another judge's scores here the
            curve shows what is really gained.

    Returns: for each k the mean over prompts, with the interval of a mean over prompts.
    """
    sample = np.asarray(values, dtype=np.float64)
    picked_by = sample if by is None else np.asarray(by, dtype=np.float64)
    return [crossed_mean([(best_weights(picked_by, k) * sample).sum(-1)[None]]) for k in ks]
