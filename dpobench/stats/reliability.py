"""Agreement of a judge with labels and with the length of the answers, and calibration. Pairs of one prompt are one cluster.

Each interval comes from the linear parts of the estimate, summed within prompts: a share through Wilson's at the size it is worth, kappa
through Student's t, a correlation on Fisher's scale.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy import special, stats

from dpobench.stats.crossed import Estimate, crossed_mean, share_interval

Array = npt.NDArray[np.float64]


def agreement(verdicts: npt.ArrayLike, labels: npt.ArrayLike, clusters: npt.ArrayLike | None = None) -> Estimate:
    """Share of pairs on which two verdicts agree.

    Args:
        verdicts: shape [N], categories such as "first", "second", "tie".
        labels: shape [N], of the same kind.
        clusters: shape [N], the prompt of each pair; without it every pair is a cluster.

    Returns: the share with a Wilson interval at the size that the clusters leave it.
    """
    same = (np.asarray(verdicts) == np.asarray(labels)).astype(np.float64)
    value = float(same.mean())
    return share_interval(_around(value, same - value, clusters))


def kappa(verdicts: npt.ArrayLike, labels: npt.ArrayLike, clusters: npt.ArrayLike | None = None) -> Estimate:
    """Cohen's kappa: agreement beyond what the two would have by chance, over what there is to have.

    Args:
        verdicts: shape [N], two or more categories.
        labels: shape [N].
        clusters: shape [N], the prompt of each pair; without it every pair is a cluster.

    Returns: kappa, 1 for full agreement, 0 for none beyond chance; NaN where both always give one and the same verdict.

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
        clusters: shape [N], the prompt of each pair; without it every pair is a cluster.

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


def crossed_correlation(first: Array, second: Array, confidence: float = 0.95) -> Estimate | None:
    """Pearson correlation over prompts, averaged over seeds on Fisher's scale.

    The correlation of a seed without a prompt gives that prompt's influence (the jackknife), so that prompts and seeds are
    crossed as in `crossed_mean` and nothing need be normal.

    Args:
        first: shape [S, N].
        second: the other measurement of the same answers, shape [S, N].
        confidence: nominal coverage; measured 93 to 97 % at 95 % (`python -m tests.stats.diagnostics_coverage`).

    Returns: the correlation in [-1, 1] with its interval; None with fewer than 8 prompts, or where one of the two varies in no more
        than one prompt: without that prompt there is no correlation.
    """
    x, y = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if x.shape[1] < 8 or not (_varies(x) and _varies(y)):
        return None
    whole, without = _fisher(x, y)
    prompts = x.shape[1]
    pseudo = prompts * whole - (prompts - 1) * without
    mean = crossed_mean([whole + pseudo - pseudo.mean(1, keepdims=True)], confidence)
    return replace(mean, value=math.tanh(mean.value), low=math.tanh(mean.low), high=math.tanh(mean.high))


def _varies(values: Array) -> bool:
    """Whether each seed's numbers still differ when the prompt that differs most is left out."""
    ordered = np.sort(values, axis=1)
    return bool((ordered[:, 1] < ordered[:, -1]).all() and (ordered[:, 0] < ordered[:, -2]).all())


def _fisher(x: Array, y: Array) -> tuple[Array, Array]:
    """Correlation on the scale of Fisher of each seed, and the same without each prompt; shape [S, N] both."""
    x, y = (z - z.mean(1, keepdims=True) for z in (x, y))
    products, count = (x * x, y * y, x * y), x.shape[1]
    scaled = []
    for left in (0.0, 1.0):
        # Sums of squares and products about their mean, one prompt fewer where `left` is 1.
        around = [p.sum(1, keepdims=True) - left * p * count / (count - 1) for p in products]
        scaled.append(np.arctanh(np.clip(around[2] / np.sqrt(around[0] * around[1]), -1 + 1e-12, 1 - 1e-12)))
    return scaled[0], scaled[1]


def spread_between(means: npt.ArrayLike, confidence: float = 0.95) -> tuple[float, float, float]:
    """Standard deviation between a few normal numbers, with the interval that chi-squared gives.

    Args:
        means: one number per seed, shape [S], S at least 2.
        confidence: nominal coverage.

    Returns: the deviation, low, high; `spread_between([0, 2])` is (1.414, 0.631, 45.13): two seeds hardly determine it.
    """
    values = np.asarray(means, dtype=np.float64)
    df, deviation = len(values) - 1, float(values.std(ddof=1))
    low, high = stats.chi2.ppf([0.5 + confidence / 2, 0.5 - confidence / 2], df)
    return deviation, deviation * math.sqrt(df / float(low)), deviation * math.sqrt(df / float(high))


@dataclass(frozen=True)
class Calibration:
    """Stated confidence against how often it was right, in bins.

    Args:
        confidence: mean stated confidence of each bin that holds any pair, 0.5 to 1.
        accuracy: share right in the bin.
        count: pairs in the bin.
        ece: mean absolute gap between the two, weighted by pairs.
        brier: mean squared distance of the stated probability from the outcome; 0.25 for a coin.
    """

    confidence: tuple[float, ...]
    accuracy: tuple[float, ...]
    count: tuple[int, ...]
    ece: float
    brier: float


def calibration(probability: npt.ArrayLike, bins: int = 10) -> Calibration:
    """Read the stated probabilities that the chosen answer is the better one.

    Which side is called chosen carries no information, so each pair is read from the side the model favours: its confidence
    is max(p, 1 - p), and it is right where p exceeds one half.

    Args:
        probability: shape [N], of the outcome that happened in every pair.
        bins: equal widths over [0.5, 1].

    Returns: the reliability table and two summaries.
    """
    p = np.asarray(probability, dtype=np.float64)
    confidence, right = np.maximum(p, 1 - p), np.where(p == 0.5, 0.5, p > 0.5)
    place = np.minimum(((confidence - 0.5) * 2 * bins).astype(int), bins - 1)
    count = np.bincount(place, minlength=bins)
    filled = count > 0
    stated = np.bincount(place, weights=confidence, minlength=bins)[filled] / count[filled]
    right_share = np.bincount(place, weights=right, minlength=bins)[filled] / count[filled]
    return Calibration(
        tuple(stated.tolist()),
        tuple(right_share.tolist()),
        tuple(count[filled].tolist()),
        float((np.abs(stated - right_share) * count[filled]).sum() / len(p)),
        float(((1 - p) ** 2).mean()),
    )


@dataclass(frozen=True)
class CalibrationError:
    """The expected calibration error (ECE) of some checkpoints.

    Args:
        plain: as usually computed; chance in the bins makes it too large.
        value: without that share; 0 or more.
        low: lower end of its interval; 0 unless the error is larger than chance makes it.
        high: upper end.
        chance: what the plain error stays below in 95 of 100 cases where every stated probability is right.
        n_prompts: independent prompts.
    """

    plain: float
    value: float
    low: float
    high: float
    chance: float
    n_prompts: int


def calibration_error(
    probability: npt.ArrayLike, *, bins: int = 10, confidence: float = 0.95, resamples: int = 1000, seed: int = 0
) -> CalibrationError:
    """ECE of the stated probabilities that the chosen answer is the better one, with an interval over prompts.

    The pairs are read from the side the model favours, in equal bins of its confidence, all seeds together. In every bin the
    size of the gap is a folded normal variable; its mean is solved for the gap itself. The interval's half-width is the standard
    error of the gaps as they are signed, prompts being the units; its lower end is 0 where the plain error is no larger than
    calibrated probabilities would give it. It speaks of these checkpoints: seeds are no source of chance here.

    Args:
        probability: shape [S, N] (or [N]): of the outcome that happened, seeds by prompts.
        bins: equal widths over [0.5, 1].
        confidence: nominal coverage; measured 93 to 98 % at 95 % (`python -m tests.stats.diagnostics_coverage`).
        resamples: outcomes drawn for `chance`.
        seed: of these draws.

    Returns: the error; `calibration_error([[0.9] * 90 + [0.1] * 10])` has value 0 and plain error 0: 90 of 100 were right.
    """
    p = np.atleast_2d(np.asarray(probability, dtype=np.float64))
    gaps = _gaps(p, bins)
    mean, error = gaps.mean(0), gaps.std(0, ddof=1) / np.sqrt(len(gaps))
    plain = float(np.abs(mean).sum())
    chance = float(np.quantile(_by_chance(p, bins, resamples, seed), confidence))
    value = float(_unfolded(np.abs(mean), error).sum())
    signed = gaps @ np.sign(mean)
    half = float(special.stdtrit(len(gaps) - 1, 0.5 + confidence / 2) * signed.std(ddof=1) / np.sqrt(len(gaps)))
    low = max(0.0, value - half) if plain > chance else 0.0
    return CalibrationError(plain, value, low, value + half, chance, len(gaps))


def _places(confidence: Array, bins: int) -> npt.NDArray[np.int64]:
    return np.minimum(((confidence - 0.5) * 2 * bins).astype(np.int64), bins - 1)


def _gaps(p: Array, bins: int) -> Array:
    """Confidence less outcome in the bin where each pair falls, averaged over seeds: shape [N, bins]."""
    confidence, right = np.maximum(p, 1 - p), np.where(p == 0.5, 0.5, p > 0.5)
    seeds, prompts = p.shape
    gaps = np.zeros((prompts, bins))
    for stated, outcome in zip(confidence, right, strict=True):
        gaps[np.arange(prompts), _places(stated, bins)] += (stated - outcome) / seeds
    return gaps


def _by_chance(p: Array, bins: int, resamples: int, seed: int) -> Array:
    """Plain errors that calibrated probabilities give: one label a pair, the same for all seeds."""
    rng = np.random.default_rng(seed)
    confidence = np.maximum(p, 1 - p)
    flat = (_places(confidence, bins) + bins * np.arange(p.shape[1])).ravel()
    mixing = np.zeros((bins, p.size))
    mixing[flat % bins, np.arange(p.size)] = 1 / p.size
    errors = []
    for drawn in np.array_split(rng.random((resamples, p.shape[1])), max(1, resamples * p.size // 2_000_000)):
        # The favoured side is right where the label drawn for this pair agrees with it.
        right = (drawn[:, None, :] < p) == (p > 0.5)
        errors.append(np.abs((confidence - right).reshape(len(drawn), -1) @ mixing.T).sum(1))
    return np.concatenate(errors)


def _unfolded(size: Array, error: Array) -> Array:
    """The mean whose folded normal variable has this expected size; 0 where even 0 would give more."""
    error = np.maximum(error, 1e-300)
    low, high = np.zeros_like(size), size.copy()
    for _ in range(60):
        middle = (low + high) / 2
        expected = middle * (1 - 2 * stats.norm.cdf(-middle / error))
        expected += error * np.sqrt(2 / np.pi) * np.exp(-0.5 * (middle / error) ** 2)
        low, high = np.where(expected > size, low, middle), np.where(expected > size, middle, high)
    return np.where(size <= error * np.sqrt(2 / np.pi), 0.0, low)
