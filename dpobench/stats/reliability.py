"""How far stated probabilities are from what happens: the expected calibration error, freed of what chance adds to it."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special, stats

Array = npt.NDArray[np.float64]


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
        confidence: coverage asked for; measured 93 to 98 % at 95 % (`python -m tests.stats.diagnostics_coverage`).
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
    return _binned(confidence, right, bins)


def _binned(confidence: Array, right: Array, bins: int) -> Array:
    seeds, prompts = confidence.shape
    found = np.zeros((prompts, bins))
    for stated, outcome in zip(confidence, right, strict=True):
        found[np.arange(prompts), _places(stated, bins)] += (stated - outcome) / seeds
    return found


def _by_chance(p: Array, bins: int, resamples: int, seed: int) -> Array:
    """Plain errors that calibrated probabilities give: one label a pair, the same for all seeds."""
    rng = np.random.default_rng(seed)
    confidence = np.maximum(p, 1 - p)
    flat = (_places(confidence, bins) + bins * np.arange(p.shape[1])).ravel()
    mixing = np.zeros((bins, p.size))
    mixing[flat % bins, np.arange(p.size)] = 1 / p.size
    found = []
    for drawn in np.array_split(rng.random((resamples, p.shape[1])), max(1, resamples * p.size // 2_000_000)):
        # The favoured side is right where the label drawn for this pair agrees with it.
        right = (drawn[:, None, :] < p) == (p > 0.5)
        found.append(np.abs((confidence - right).reshape(len(drawn), -1) @ mixing.T).sum(1))
    return np.concatenate(found)


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
