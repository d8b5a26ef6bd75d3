"""Means over seeds x prompts: every seed meets every prompt, and both are samples of something larger.

An arm is a list of strata (one for a win-rate, one per task for benchmarks), each an array [S, N]: row s is the s-th seed, column i the
i-th prompt. Strata weigh equally and hold independent prompts; a seed is the same training in all of them. With the variances
v_p of prompts, v_s of seeds and v_r of what is left, the mean of one stratum has SE^2 = v_p/N + v_s/S + v_r/(SN), and

    SE^2(prompts, on seed averages) = v_p/N + v_r/(SN)
    SE^2(seed means)                = v_s/S + v_r/(SN)
    SE^2(residual)                  = v_r/(SN)

so the first two less the third is the SE^2 sought. Averaging over prompts alone takes one lucky seed for a better method; averaging
over seeds alone throws the prompts' information away.

A difference of two arms takes Satterthwaite's degrees of freedom. For a single arm of two or three seeds those are too many
(measured: 88-92 % coverage where seeds dominate), so there each part keeps its own quantile, as in Howe's interval, and the degrees of
freedom are those of the Student quantile that comes to the same.

References: Searle, Casella, McCulloch 1992, Variance Components, ch. 5; Satterthwaite 1946, https://doi.org/10.2307/3002019;
Howe 1974, https://doi.org/10.1080/01621459.1974.10480178.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy import special

Array = npt.NDArray[np.float64]
Arm = Sequence[Array]


@dataclass(frozen=True)
class Estimate:
    """A number with what makes it one.

    Args:
        value: the estimate, in the unit of the metric.
        low: lower end of its interval.
        high: upper end.
        se: standard error.
        df: degrees of freedom of the standard error.
        n_prompts: independent prompts (or documents) behind it.
        seeds: trainings behind it; 1 where there was one, and then the interval speaks of that checkpoint alone.
    """

    value: float
    low: float
    high: float
    se: float
    df: float
    n_prompts: int
    seeds: int

    @property
    def p(self) -> float:
        """Two-sided p-value of "the true value is zero"; 1 where estimate and error are both zero."""
        if self.se == 0:
            return 1.0 if self.value == 0 else 0.0
        return float(2 * special.stdtr(self.df, -abs(self.value) / self.se))

    @property
    def level(self) -> str:
        """What the interval speaks of: "method" with two seeds or more, else "checkpoint"."""
        return "method" if self.seeds > 1 else "checkpoint"


def crossed_mean(arm: Arm, confidence: float = 0.95) -> Estimate:
    """Mean of one arm.

    Args:
        arm: arrays [S, N], one per stratum, no missing values.
        confidence: coverage asked for.

    Returns: the mean, seeds and strata weighing equally, with its interval.
    """
    return _estimate([arm], [np.asarray(x).mean(0) for x in arm], confidence)


def crossed_difference(variant: Arm, control: Arm, confidence: float = 0.95) -> Estimate:
    """Mean of one arm less the mean of another on the same prompts.

    The arms' seeds are treated as independent: equal numbers share the order of the data, which can only make the difference surer.

    Args:
        variant: arrays [S, N], one per stratum.
        control: arrays [S', N] with the same prompts in the same columns.
        confidence: coverage asked for.

    Returns: the difference with its interval; `seeds` is the smaller of S and S'.
    """
    paired = [np.asarray(a).mean(0) - np.asarray(b).mean(0) for a, b in zip(variant, control, strict=True)]
    return _estimate([variant, control], paired, confidence)


def crossed_ratio(values: Array, base: Array, confidence: float = 0.95) -> Estimate:
    """Mean of the values over the mean of a fixed base on the same prompts, by linearisation.

    Args:
        values: shape [S, N].
        base: shape [N], its mean not zero.
        confidence: coverage asked for.

    Returns: the ratio, without unit, with its interval.
    """
    ratio = values.mean() / base.mean()
    around = crossed_mean([(values - ratio * base) / base.mean()], confidence)
    return replace(around, value=float(ratio), low=float(ratio + around.low), high=float(ratio + around.high))


def share_interval(estimate: Estimate, confidence: float = 0.95) -> Estimate:
    """Wilson's interval of a mean of numbers in [0, 1], at the sample size its standard error is worth.

    It never leaves [0, 1], and a share of exactly 0 or 1 still has a width. For one seed and values in {0, 1} this is Wilson's own
    interval with Student's quantile.
    """
    p = min(1.0, max(0.0, estimate.value))
    spread = p * (1 - p)
    if estimate.se == 0 and spread > 0:  # all units agree on a value in between: nothing was sampled
        return estimate
    size = spread / estimate.se**2 if estimate.se > 0 and spread > 0 else float(estimate.n_prompts)
    squared = _quantile(estimate.df, confidence) ** 2 / size
    middle = (p + squared / 2) / (1 + squared)
    half = math.sqrt(squared * spread + squared**2 / 4) / (1 + squared)
    return replace(estimate, low=min(p, middle - half), high=max(p, middle + half))


def _quantile(df: float, confidence: float) -> float:
    return float(special.stdtrit(df, 0.5 + confidence / 2))


def _estimate(arms: Sequence[Arm], paired: Sequence[Array], confidence: float) -> Estimate:
    strata = len(paired)
    value = sum(float(x.mean()) for x in paired) / strata
    prompts = [_variance(x) / len(x) / strata**2 for x in paired]
    n_prompts, n_seeds = sum(len(x) for x in paired), min(len(arm[0]) for arm in arms)
    spread = sum(v**2 / (len(x) - 1) for v, x in zip(prompts, paired, strict=True) if len(x) > 1)
    sampled = total = sum(prompts)
    df = sampled**2 / spread if spread > 0 else float(max(1, n_prompts - strata))
    # With one seed in an arm nothing is known of the spread between seeds: only the prompts' share is left.
    if n_seeds > 1:
        residual = sum(sum(_residuals(arm)) for arm in arms)
        # Where the seeds spread no more than their residual, they lend the error nothing, and no few degrees of freedom either.
        between = max(0.0, sum(_between_seeds(arm) for arm in arms) - residual)
        total = sampled + between
        if between > 0 and len(arms) == 1:
            df = _howe(sampled, df, between if n_seeds > 2 else between + residual, n_seeds - 1, confidence, total)
        elif between > 0:
            df = max(total**2 / (spread + sum(_fourth_moments(arm) for arm in arms)), n_seeds - 1.0)
    se = math.sqrt(total)
    half = _quantile(df, confidence) * se
    return Estimate(value, value - half, value + half, se, df, n_prompts, n_seeds)


def _howe(sampled: float, df: float, between: float, seeds_df: int, confidence: float, total: float) -> float:
    """Degrees of freedom whose Student quantile equals the quantiles of the two parts, added in squares."""
    squared = _quantile(df, confidence) ** 2 * sampled + _quantile(seeds_df, confidence) ** 2 * between
    quantile = min(math.sqrt(squared / total), _quantile(seeds_df, confidence))
    return float(special.stdtridf(0.5 + confidence / 2, quantile))


def _fourth_moments(arm: Arm) -> float:
    """What Satterthwaite's denominator takes from the seeds of one arm: squared SE^2 over its degrees of freedom."""
    count = len(arm[0])
    rest = zip(_residuals(arm), arm, strict=True)
    return _between_seeds(arm) ** 2 / (count - 1) + sum(
        r**2 / ((count - 1) * (x.shape[1] - 1)) for r, x in rest if r > 0
    )


def _variance(values: Array) -> float:
    return float(values.var(ddof=1)) if len(values) > 1 else 0.0


def _between_seeds(arm: Arm) -> float:
    return _variance(np.mean([x.mean(1) for x in arm], axis=0)) / len(arm[0])


def _residuals(arm: Arm) -> list[float]:
    """The residual's part of the SE^2 in each stratum."""
    found = []
    for x in arm:
        rest = x - x.mean(0) - x.mean(1, keepdims=True) + x.mean()
        freedom = (len(x) - 1) * (x.shape[1] - 1)
        found.append(float((rest**2).sum() / freedom / x.size / len(arm) ** 2) if freedom else 0.0)
    return found
