"""Intervals for one sample of independent units (prompts, documents): Wilson, Student, bootstrap."""

import numpy as np
import numpy.typing as npt
from scipy import stats

Array = npt.NDArray[np.float64]


def wilson(successes: float, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of a share.

    Args:
        successes: number of ones, 0 to `trials`.
        trials: number of independent units.
        confidence: coverage asked for.

    Returns: low and high; `wilson(5, 10)` is (0.2366, 0.7634).

    References: Wilson 1927, https://doi.org/10.1080/01621459.1927.10502953.
    """
    interval = stats.binomtest(round(successes), trials).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def t_mean(values: npt.ArrayLike, confidence: float = 0.95) -> tuple[float, float]:
    """Student's interval of a mean over independent units.

    Args:
        values: one number per unit, shape [N], N at least 2.
        confidence: coverage asked for.

    Returns: low and high, in the unit of the values.
    """
    sample = np.asarray(values, dtype=np.float64)
    half = stats.t.ppf(0.5 + confidence / 2, len(sample) - 1) * sample.std(ddof=1) / np.sqrt(len(sample))
    return float(sample.mean() - half), float(sample.mean() + half)


def bootstrap_mean(
    values: npt.ArrayLike,
    clusters: npt.ArrayLike | None = None,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """BCa bootstrap interval of a mean, whole clusters drawn together.

    Args:
        values: one number per row, shape [N].
        clusters: the unit each row belongs to, shape [N]; without it every row is a unit.
        confidence: coverage asked for.
        resamples: bootstrap samples.
        seed: of the resampling.

    Returns: low and high. Where every unit has the same value there is nothing to resample: both equal it.
    """
    sample = np.asarray(values, dtype=np.float64)
    _, unit = np.unique(np.arange(len(sample)) if clusters is None else np.asarray(clusters), return_inverse=True)
    sums: Array = np.bincount(unit, weights=sample).astype(np.float64)
    sizes: Array = np.bincount(unit).astype(np.float64)
    return _bca(sums, sizes, confidence, resamples, seed)


def paired_bootstrap(
    first: npt.ArrayLike, second: npt.ArrayLike, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """BCa bootstrap interval of mean(first - second), both measured on the same units.

    Args:
        first: one number per unit, shape [N].
        second: the other treatment on the same units in the same order, shape [N].
        confidence: coverage asked for.
        resamples: bootstrap samples.
        seed: of the resampling.

    Returns: low and high of the difference.
    """
    difference = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    return _bca(difference, np.ones_like(difference), confidence, resamples, seed)


def _bca(sums: Array, sizes: Array, confidence: float, resamples: int, seed: int) -> tuple[float, float]:
    means = sums / sizes
    if np.ptp(means) == 0:
        return float(means[0]), float(means[0])

    def ratio(total: Array, size: Array, axis: int = -1) -> Array:
        return np.asarray(total.sum(axis) / size.sum(axis))

    found = stats.bootstrap(
        (sums, sizes),
        ratio,
        paired=True,
        vectorized=True,
        n_resamples=resamples,
        confidence_level=confidence,
        method="BCa",
        rng=np.random.default_rng(seed),
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)
