"""How far a judge agrees with labels, and how far with the length of the answers. Pairs of one prompt are one cluster.

Each interval comes from the linear parts of the estimate, summed within prompts: a share through Wilson's at the size it is worth, kappa
through Student's t, a correlation on Fisher's scale.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from dpobench.stats.crossed import Estimate, crossed_mean, share_interval

Array = npt.NDArray[np.float64]


def agreement(verdicts: Sequence[Any], labels: Sequence[Any], clusters: npt.ArrayLike | None = None) -> Estimate:
    """Share of pairs on which two say the same.

    Args:
        verdicts: shape [N], categories such as "first", "second", "tie".
        labels: shape [N], of the same kind.
        clusters: shape [N], the prompt of each pair; without it every pair is its own.

    Returns: the share with a Wilson interval at the size that the clusters leave it.
    """
    same = (np.asarray(verdicts) == np.asarray(labels)).astype(np.float64)
    value = float(same.mean())
    return share_interval(_around(value, same - value, clusters))


def kappa(verdicts: Sequence[Any], labels: Sequence[Any], clusters: npt.ArrayLike | None = None) -> Estimate:
    """Cohen's kappa: agreement beyond what the two would have by chance, over what there is to have.

    Args:
        verdicts: shape [N], two or more categories.
        labels: shape [N].
        clusters: shape [N], the prompt of each pair; without it every pair is its own.

    Returns: kappa, 1 for full agreement, 0 for none beyond chance; NaN where both always say one and the same thing.

    References: Cohen 1960, https://doi.org/10.1177/001316446002000104.
    """
    categories = np.unique(np.concatenate([np.asarray(verdicts).astype(str), np.asarray(labels).astype(str)]))
    first = (np.asarray(verdicts).astype(str)[:, None] == categories).astype(np.float64)
    second = (np.asarray(labels).astype(str)[:, None] == categories).astype(np.float64)
    same = (first * second).sum(1)
    shares, others = first.mean(0), second.mean(0)
    chance = float(shares @ others)
    if chance == 1:
        around = _around(0.0, same - same.mean(), clusters)
        return replace(around, value=np.nan, low=np.nan, high=np.nan)
    value = (same.mean() - chance) / (1 - chance)
    expected = first @ others + second @ shares - 2 * chance
    return _around(float(value), (same - same.mean() - (1 - value) * expected) / (1 - chance), clusters)


def correlation(x: npt.ArrayLike, y: npt.ArrayLike, clusters: npt.ArrayLike | None = None) -> Estimate:
    """Pearson's correlation, of a verdict and a difference in length for example.

    Args:
        x: shape [N].
        y: shape [N].
        clusters: shape [N], the prompt of each pair; without it every pair is its own.

    Returns: the correlation; the interval is made on Fisher's scale and asks for no normal distribution. NaN where either is constant.
    """
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return replace(_around(0.0, np.zeros_like(a), clusters), value=np.nan, low=np.nan, high=np.nan)
    a, b = (a - a.mean()) / a.std(), (b - b.mean()) / b.std()
    value = float((a * b).mean())
    if 1 - value**2 < 1e-12:
        return replace(_around(0.0, np.zeros_like(a), clusters), value=value, low=value, high=value)
    linear = (a * b - value * (a**2 + b**2) / 2) / (1 - value**2)  # of the inverse hyperbolic tangent
    around = _around(float(np.arctanh(value)), linear, clusters)
    ends = np.tanh([around.low, around.high])
    return replace(around, value=value, low=float(ends[0]), high=float(ends[1]), se=around.se * (1 - value**2))


def _around(value: float, linear: Array, clusters: npt.ArrayLike | None) -> Estimate:
    """The estimate with the error of its linear parts, which have mean zero, summed within clusters."""
    unit = np.arange(len(linear)) if clusters is None else np.unique(np.asarray(clusters), return_inverse=True)[1]
    sums = np.bincount(unit, weights=linear)
    around = crossed_mean([sums[None] * len(sums) / len(linear)])
    return replace(around, value=value, low=value + around.low, high=value + around.high)
