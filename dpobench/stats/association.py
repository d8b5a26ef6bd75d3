"""How two measurements of the same answers go together, and how far seeds lie apart."""

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from scipy import stats

from dpobench.stats.crossed import Array, Estimate, crossed_mean


def crossed_correlation(first: Array, second: Array, confidence: float = 0.95) -> Estimate | None:
    """Pearson correlation over prompts, averaged over seeds on Fisher's scale.

    What the correlation of a seed would be without a prompt says what the prompt does to it (the jackknife), so that prompts and seeds
    are crossed as in `crossed_mean` and nothing need be normal.

    Args:
        first: shape [S, N].
        second: the other measurement of the same answers, shape [S, N].
        confidence: coverage asked for; measured 93 to 97 % at 95 % (`python -m tests.stats.diagnostics_coverage`).

    Returns: the correlation in [-1, 1] with its interval; None with fewer than 8 prompts, or where one of the two varies in no more
        than one prompt: without that prompt there is no correlation.
    """
    x, y = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if x.shape[1] < 8 or not (_varies(x) and _varies(y)):
        return None
    whole, without = _fisher(x, y)
    prompts = x.shape[1]
    pseudo = prompts * whole - (prompts - 1) * without
    seen = crossed_mean([whole + pseudo - pseudo.mean(1, keepdims=True)], confidence)
    return replace(seen, value=math.tanh(seen.value), low=math.tanh(seen.low), high=math.tanh(seen.high))


def _varies(values: Array) -> bool:
    """Whether each seed's numbers still differ when the prompt that differs most is left out."""
    ordered = np.sort(values, axis=1)
    return bool((ordered[:, 1] < ordered[:, -1]).all() and (ordered[:, 0] < ordered[:, -2]).all())


def _fisher(x: Array, y: Array) -> tuple[Array, Array]:
    """Correlation on the scale of Fisher of each seed, and the same without each prompt; shape [S, N] both."""
    x, y = (z - z.mean(1, keepdims=True) for z in (x, y))
    products, count = (x * x, y * y, x * y), x.shape[1]
    found = []
    for left in (0.0, 1.0):
        # Sums of squares and products about their mean, one prompt fewer where `left` is 1.
        around = [p.sum(1, keepdims=True) - left * p * count / (count - 1) for p in products]
        found.append(np.arctanh(np.clip(around[2] / np.sqrt(around[0] * around[1]), -1 + 1e-12, 1 - 1e-12)))
    return found[0], found[1]


def spread_between(means: npt.ArrayLike, confidence: float = 0.95) -> tuple[float, float, float]:
    """Standard deviation between a few normal numbers, with the interval that chi-squared gives.

    Args:
        means: one number per seed, shape [S], S at least 2.
        confidence: coverage asked for.

    Returns: the deviation, low, high; `spread_between([0, 2])` is (1.414, 0.631, 45.13): two seeds say next to nothing.
    """
    values = np.asarray(means, dtype=np.float64)
    df, found = len(values) - 1, float(values.std(ddof=1))
    low, high = stats.chi2.ppf([0.5 + confidence / 2, 0.5 - confidence / 2], df)
    return found, found * math.sqrt(df / float(low)), found * math.sqrt(df / float(high))
