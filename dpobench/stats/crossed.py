"""Means over seeds x prompts: every seed meets every prompt, and both are samples of something larger.

The scores of a variant are a list of strata (one for a win-rate, one per task for benchmarks), each an array [S, N]: row s is the s-th
seed, column i the i-th prompt. Strata weigh equally and hold independent prompts; a seed is the same training in all of them. With the
variances v_p of prompts, v_s of seeds and v_r of what is left, the mean of one stratum has SE^2 = v_p/N + v_s/S + v_r/(SN), and

    A = SE^2(prompts, on seed averages) = v_p/N + v_r/(SN)
    B = SE^2(seed means)                = v_s/S + v_r/(SN)
    C = SE^2(residual)                  = v_r/(SN)

so A + B - C is the SE^2 sought, and never taken below A. Averaging over prompts alone takes one lucky seed for a better method;
averaging over seeds alone throws the prompts' information away.

A and C are known well, B is not: a handful of seeds give it f = 1 to 4 degrees of freedom. Satterthwaite's formula weighs these
few by the *measured* B, and a B that came out small by luck then makes the error small and its degrees of freedom many at once:
intervals of three seeds covered 91 %, and a family of tests erred in 6.4 %. `Spread` therefore believes only a part (`trust`) of
the evidence that seeds add little: the smaller, the fewer the seeds and the smaller the level asked for. Where seeds are all that
matters its limit is Student's quantile over seeds; where B is not above what the residual alone would make it, that of the prompts.

A difference takes B from both variants, with Welch's degrees of freedom of variances moved three quarters of the way to their common mean:
two variances of two or three seeds each hardly show which is the larger. Where the seeds of only one variant spread, two seeds
are therefore too few for a test that keeps its level (docs/statistics.md has the numbers).

References: Searle, Casella, McCulloch 1992, Variance Components, ch. 5; Satterthwaite 1946, https://doi.org/10.2307/3002019;
Welch 1947, https://doi.org/10.1093/biomet/34.1-2.28.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy import special

Array = npt.NDArray[np.float64]
Strata = Sequence[Array]
Value = float | Array

# The usual level; and by how much B must stand out of C to count in full.
USUAL, PLAINLY = 0.05, 1.25


@dataclass(frozen=True)
class Spread:
    """The parts of a squared standard error, each float or array of one shape.

    Args:
        sampled: A, from the prompts.
        sampled_df: its degrees of freedom.
        seeds: B, from the seeds; 0 where there was one.
        seeds_df: its degrees of freedom; 0 where there was one seed.
        residual: C, what of both is their common residual.
    """

    sampled: Value
    sampled_df: Value
    seeds: Value = 0.0
    seeds_df: Value = 0.0
    residual: Value = 0.0

    @property
    def variance(self) -> Array:
        """The squared standard error."""
        return np.asarray(self.sampled + np.maximum(np.asarray(self.seeds) - self.residual, 0.0))

    def df(self, alpha: Value = USUAL) -> Array:
        """Degrees of freedom of the Student quantile at a two-sided level."""
        f = np.maximum(self.seeds_df, 1e-9)
        # Both lines come from simulation over 1 to 16 degrees of freedom; they are the narrowest that keep their level there.
        strict = np.minimum(1.0, np.asarray(alpha) / USUAL)
        trust, edge = np.minimum(1.0, np.square(f) / 6) * strict, np.clip(0.6 * f - 0.4, 0.05, 1.0) * strict
        seeds, prompts = np.asarray(self.seeds), np.maximum(np.asarray(self.sampled) - self.residual, 0.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            # From no more than chance (0) to plainly there (1): how far B stands out of the residual it contains.
            there = np.clip((seeds / (edge * self.residual) - 1) / (PLAINLY - 1), 0.0, 1.0)
            share = np.where(seeds > 0, there * np.square(seeds / (seeds + trust * prompts)), 0.0) / f
            known = np.where(self.variance > 0, np.square(self.sampled / self.variance), 1.0) / self.sampled_df
        return np.asarray(1 / (np.where(np.asarray(self.seeds_df) > 0, share, 0.0) + known))

    def quantile(self, alpha: Value = USUAL) -> Array:
        """Standard errors on either side of an interval that misses in a share alpha."""
        return np.asarray(special.stdtrit(self.df(alpha), 1 - np.asarray(alpha) / 2))

    def p(self, distance: Value) -> Array:
        """Two-sided p-value of an estimate this far from a hypothesis: the level whose interval just ends there."""
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.abs(distance) / np.sqrt(self.variance)
        ratio = np.where(np.asarray(distance) == 0, 0.0, ratio)

        def tail(alpha: Value) -> Array:
            both_sides: Array = 2 * special.stdtr(self.df(alpha), -ratio)
            return both_sides

        usual = np.asarray(tail(USUAL))
        if np.all(usual >= USUAL):
            return usual
        low, high = np.log(np.maximum(usual, 1e-300)), np.full(usual.shape, math.log(USUAL))
        # The smaller the level, the larger the tail: they meet once.
        for _ in range(24):
            middle = (low + high) / 2
            larger = tail(np.exp(middle)) > np.exp(middle)
            low, high = np.where(larger, middle, low), np.where(larger, high, middle)
        return np.where(usual < USUAL, tail(np.exp((low + high) / 2)), usual)


@dataclass(frozen=True)
class Estimate:
    """A number with what makes it one.

    Args:
        value: the estimate, in the unit of the metric.
        low: lower end of its interval.
        high: upper end.
        se: standard error.
        df: degrees of freedom of the Student quantile behind the interval.
        n_prompts: independent prompts (or documents) behind it.
        seeds: trainings behind it; 1 where there was one, and then the interval holds for that checkpoint alone.
        spread: the parts of the standard error; without them, tests take `se` and `df`.
    """

    value: float
    low: float
    high: float
    se: float
    df: float
    n_prompts: int
    seeds: int
    spread: Spread | None = None

    @property
    def p(self) -> float:
        """Two-sided p-value of "the true value is zero"; 1 where estimate and error are both zero."""
        return self.p_of(0.0)

    def p_of(self, hypothesis: float) -> float:
        """Two-sided p-value of "the true value is this"."""
        distance = self.value - hypothesis
        if self.se == 0:
            return 1.0 if distance == 0 else 0.0
        if self.spread is not None:
            return float(self.spread.p(distance))
        return float(2 * special.stdtr(self.df, -abs(distance) / self.se))

    @property
    def level(self) -> str:
        """What the interval holds for: "method" with two seeds or more, else "checkpoint"."""
        return "method" if self.seeds > 1 else "checkpoint"


def crossed_mean(strata: Strata, confidence: float = 0.95) -> Estimate:
    """Mean of one variant.

    Args:
        strata: arrays [S, N], one per stratum, no missing values.
        confidence: nominal coverage.

    Returns: the mean, seeds and strata weighing equally, with its interval.
    """
    return _estimate([strata], [np.asarray(x).mean(0) for x in strata], confidence)


def crossed_difference(variant: Strata, control: Strata, confidence: float = 0.95) -> Estimate:
    """Mean of one variant less the mean of another on the same prompts.

    The seeds of both are treated as independent: equal numbers share the order of the data, which can only make the difference surer.

    Args:
        variant: arrays [S, N], one per stratum.
        control: arrays [S', N] with the same prompts in the same columns.
        confidence: nominal coverage.

    Returns: the difference with its interval; `seeds` is the smaller of S and S'.
    """
    paired = [np.asarray(a).mean(0) - np.asarray(b).mean(0) for a, b in zip(variant, control, strict=True)]
    return _estimate([variant, control], paired, confidence)


def crossed_ratio(values: Array, base: Array, confidence: float = 0.95) -> Estimate:
    """Mean of the values over the mean of a fixed base on the same prompts, by linearisation.

    Args:
        values: shape [S, N].
        base: shape [N], its mean not zero.
        confidence: nominal coverage.

    Returns: the ratio, without unit, with its interval.
    """
    ratio = values.mean() / base.mean()
    around = crossed_mean([(values - ratio * base) / base.mean()], confidence)
    return replace(around, value=float(ratio), low=float(ratio + around.low), high=float(ratio + around.high))


def share_interval(estimate: Estimate, confidence: float = 0.95) -> Estimate:
    """Wilson's interval of a mean of numbers in [0, 1], at the sample size its standard error is worth.

    It never leaves [0, 1], and a share of exactly 0 or 1 still has a width. For one seed and values in {0, 1} this is Wilson's
    interval with Student's quantile.
    """
    p = min(1.0, max(0.0, estimate.value))
    spread = p * (1 - p)
    if estimate.se == 0 and spread > 0:  # all units agree on a value in between: nothing was sampled
        return estimate
    size = spread / estimate.se**2 if estimate.se > 0 and spread > 0 else float(estimate.n_prompts)
    squared = _quantile(estimate, confidence) ** 2 / size
    middle = (p + squared / 2) / (1 + squared)
    half = math.sqrt(squared * spread + squared**2 / 4) / (1 + squared)
    return replace(estimate, low=min(p, middle - half), high=max(p, middle + half))


def share_difference(estimate: Estimate) -> Estimate:
    """The same estimate, its interval cut at -1 and 1: no two shares are farther apart, so nothing is lost by it."""
    return replace(estimate, low=max(estimate.low, -1.0), high=min(estimate.high, 1.0))


def _quantile(estimate: Estimate, confidence: float) -> float:
    alpha = 1 - confidence
    return float(
        special.stdtrit(estimate.df, 1 - alpha / 2) if estimate.spread is None else estimate.spread.quantile(alpha)
    )


def _estimate(variants: Sequence[Strata], paired: Sequence[Array], confidence: float) -> Estimate:
    strata = len(paired)
    value = sum(float(x.mean()) for x in paired) / strata
    prompts = [_variance(x) / len(x) / strata**2 for x in paired]
    n_prompts, n_seeds = sum(len(x) for x in paired), min(len(one[0]) for one in variants)
    squares = sum(v**2 / (len(x) - 1) for v, x in zip(prompts, paired, strict=True) if len(x) > 1)
    sampled = sum(prompts)
    sampled_df = sampled**2 / squares if squares > 0 else float(max(1, n_prompts - strata))
    spread = Spread(sampled, sampled_df)
    # With one seed in a variant nothing is known of the spread between seeds: only the prompts' share is left.
    if n_seeds > 1:
        between = [_between_seeds(one) for one in variants]
        seeds_df = between_df(between, [len(one[0]) for one in variants])
        spread = Spread(sampled, sampled_df, sum(between), float(seeds_df), sum(map(_residual, variants)))
    se, alpha = math.sqrt(float(spread.variance)), 1 - confidence
    half = float(spread.quantile(alpha)) * se
    return Estimate(value, value - half, value + half, se, float(spread.df(alpha)), n_prompts, n_seeds, spread)


def between_df(between: Sequence[Value], seeds: Sequence[int]) -> Array:
    """Welch's degrees of freedom of a sum of B, each moved three quarters of the way to what it were if all seeds spread alike.

    Args:
        between: B of each variant.
        seeds: number of seeds of each variant.

    Returns: between the smallest and the sum of (seeds - 1).
    """
    freedom = sum(count - 1 for count in seeds)
    common = sum((n - 1) * n * np.asarray(b) for b, n in zip(between, seeds, strict=True)) / freedom
    moved = [(np.asarray(b) + 3 * common / n) / 4 for b, n in zip(between, seeds, strict=True)]
    squares = sum(m**2 / (n - 1) for m, n in zip(moved, seeds, strict=True))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(squares > 0, np.square(sum(moved)) / squares, float(freedom))


def _variance(values: Array) -> float:
    return float(values.var(ddof=1)) if len(values) > 1 else 0.0


def _between_seeds(strata: Strata) -> float:
    return _variance(np.mean([x.mean(1) for x in strata], axis=0)) / len(strata[0])


def _residual(strata: Strata) -> float:
    """C of one variant, over its strata."""
    total = 0.0
    for x in strata:
        rest = x - x.mean(0) - x.mean(1, keepdims=True) + x.mean()
        freedom = (len(x) - 1) * (x.shape[1] - 1)
        total += float((rest**2).sum() / freedom / x.size / len(strata) ** 2) if freedom else 0.0
    return total
