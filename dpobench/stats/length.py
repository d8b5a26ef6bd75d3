"""Win-rate with the length of the answers held equal.

A judge that likes long answers rewards whoever writes more. The verdicts of a variant are regressed on the difference in length,
as tanh(difference / its standard deviation), and on how hard each prompt is, and the win-rate is read off at a difference of zero
(after Dubois et al. 2024, Length-Controlled AlpacaEval, https://arxiv.org/abs/2404.04475). A prompt's difficulty is the mean logit of the
*other* cells' verdicts on it, each less its slope on length: with the cell's verdicts in it a cell would explain itself, and with
their lengths in it difficulty would take over what belongs to length.

The regression is fitted anew in every resample of the prompts; errors that hold its slopes fixed are too small by far. Held are what each
prompt brings to it, its difficulty and the scale of the length differences: on AlpacaEval's 29 models they are worth 4 % of the error.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy import special

from dpobench.stats.crossed import Estimate, crossed_mean, share_interval
from dpobench.stats.resample import prompt_weights

Array = npt.NDArray[np.float64]
# Verdicts are moved to at least this distance from 0 and 1 before their logit is taken for the difficulty of a prompt.
FLOOR = 0.02
# Prior precision of the slopes, the information of four even verdicts: a slope of 1 is a large one, and where a cell hardly ever wins or
# loses, the verdicts alone leave it open.
SLOPE_PRECISION = 1.0
EQUAL, FEWEST = 0.1, 8


@dataclass(frozen=True)
class Stratum:
    """Verdicts whose length differences lie in one range.

    Args:
        low: smallest difference, in the unit of the lengths; the answer's less the other's.
        high: largest difference.
        win_rate: mean verdict; None where fewer than eight prompts are left.
        pairs: answers in it.
    """

    low: float
    high: float
    win_rate: Estimate | None
    pairs: int


def difficulty(verdicts: Sequence[Array], differences: Sequence[Array]) -> list[Array]:
    """How each prompt went for the other cells.

    Args:
        verdicts: for each cell an array [S, N] in [0, 1], columns the same prompts.
        differences: of the lengths, the same shapes.

    Returns: for each cell an array [N] with mean zero and unit variance; zeros where there is no other cell, or no spread.
    """
    residuals = []
    for verdict, difference in zip(verdicts, differences, strict=True):
        logit = special.logit(np.clip(np.mean(verdict, axis=0), FLOOR, 1 - FLOOR))
        x = _bounded(np.asarray(difference, dtype=np.float64)).mean(0)
        x = x - x.mean()
        slope = x @ logit / (x @ x) if x.any() else 0.0
        residuals.append(logit - logit.mean() - slope * x)
    total = np.sum(residuals, axis=0)
    return [_scaled(total - residual) for residual in residuals]


def _bounded(difference: Array) -> Array:
    spread = difference.std()
    return np.asarray(np.tanh(difference / spread)) if spread > 0 else np.zeros_like(difference)


def _scaled(values: Array) -> Array:
    spread = values.std()
    return np.asarray((values - values.mean()) / spread) if spread > 1e-12 else np.zeros_like(values)


def length_controlled(
    verdict: Array, difference: Array, hardness: Array | None = None, *, resamples: int = 1000, seed: int = 0
) -> Estimate:
    """Win-rate at equal length.

    Args:
        verdict: shape [S, N], in [0, 1], seeds by prompts.
        difference: shape [S, N], length of the answer less the other's.
        hardness: shape [N], from `difficulty`; without it the regression has none.
        resamples: of the prompts, with the regression fitted anew in each.
        seed: of the resampling.

    Returns: mean over prompts of the fitted chance of winning at zero difference, with its 95 % interval. The error is that of the
        refit bootstrap over prompts; seeds add theirs through the linear parts of the same fit, as in `crossed`.
    """
    y, x = np.asarray(verdict, dtype=np.float64), _bounded(np.asarray(difference, dtype=np.float64))
    hard = np.zeros(y.shape[1]) if hardness is None else np.asarray(hardness, dtype=np.float64)
    if np.ptp(y) == 0:  # nothing to regress: all answers won, lost or tied
        return share_interval(crossed_mean([y]))
    design = _design(x, hard)
    every = np.full((y.shape[1], 1), 1 / y.shape[1])
    fit = _fit(design, y, every, np.zeros((design.shape[2], 1)))
    value = float(_at_zero(fit, hard, every)[0])
    linear = _linear_parts(design, y, hard, fit[:, 0], value)
    around = crossed_mean([linear])
    weights = prompt_weights(y.shape[1], resamples, seed).T
    drawn = _at_zero(_fit(design, y, weights, fit), hard, weights)
    prompts_only = crossed_mean([linear.mean(0)[None]])
    se = float(np.sqrt(around.se**2 - prompts_only.se**2 + drawn.var(ddof=1)))
    return share_interval(replace(around, value=value, low=value, high=value, se=se))


def _design(x: Array, hard: Array) -> Array:
    """Columns of the regression, [S, N, K]: one, length, difficulty; those without any spread are left out."""
    columns = [np.ones_like(x), *(c for c in (x, np.broadcast_to(hard, x.shape)) if np.ptp(c) > 0)]
    return np.stack(columns, axis=2)


def _fit(design: Array, y: Array, weights: Array, start: Array) -> Array:
    """Logistic regression by Newton's method in all resamples at once.

    Args:
        design: shape [S, N, K].
        y: shape [S, N].
        weights: shape [N, B], each column sums to one.
        start: shape [K, 1], where the iteration begins.

    Returns: coefficients [K, B].
    """
    seeds, prompts, count = design.shape
    rows, target = design.reshape(-1, count), y.reshape(-1, 1)
    products = (rows[:, :, None] * rows[:, None, :]).reshape(len(rows), -1)
    spread = np.tile(weights, (seeds, 1)) / seeds
    prior = _prior(prompts, count)
    coefficients = np.repeat(start, weights.shape[1], axis=1)
    moving = np.arange(weights.shape[1])
    for _ in range(30):
        now = coefficients[:, moving]
        chance = special.expit(rows @ now)
        slope = rows.T @ (spread * (target - chance)) - prior[:, None] * now
        bend = (products.T @ (spread * chance * (1 - chance))).T.reshape(-1, count, count) + np.diag(prior)
        step = np.clip(np.linalg.solve(bend, slope.T[:, :, None])[:, :, 0].T, -2.0, 2.0)
        coefficients[:, moving] = now + step
        # The error after a step is of the order of the step's square: a resample that moved so little has arrived.
        on = np.abs(step).max(0) > 1e-5
        moving, spread = moving[on], spread[:, on]
        if not len(moving):
            break
    return coefficients


def _prior(prompts: int, count: int) -> Array:
    """Precision per prompt; next to none for the intercept, so that it stays finite."""
    precision: Array = np.r_[1e-3, np.full(count - 1, SLOPE_PRECISION)] / prompts
    return precision


def _at_zero(fit: Array, hard: Array, weights: Array) -> Array:
    """Mean chance at zero length difference, [B]."""
    slope = fit[-1:] if np.ptp(hard) > 0 else np.zeros((1, fit.shape[1]))
    return np.asarray((weights * special.expit(fit[:1] + hard[:, None] * slope)).sum(0))


def _linear_parts(design: Array, y: Array, hard: Array, fit: Array, value: float) -> Array:
    """What each verdict adds to the estimate, [S, N], mean `value`: its influence."""
    _, prompts, count = design.shape
    chance = special.expit(design @ fit)
    bend = np.einsum("snk,snl,sn->kl", design, design, chance * (1 - chance)) / y.size
    bend += np.diag(_prior(prompts, count))
    slope = fit[-1] if np.ptp(hard) > 0 else 0.0
    zero = special.expit(fit[0] + hard * slope)
    gradient = np.zeros(count)
    gradient[0] = (zero * (1 - zero)).mean()
    if np.ptp(hard) > 0:
        gradient[-1] = (zero * (1 - zero) * hard).mean()
    through_fit = (design * (y - chance)[:, :, None]) @ np.linalg.solve(bend, gradient)
    return np.asarray(value + through_fit - through_fit.mean() + (zero - zero.mean())[None])


def equal_length(verdict: Array, lengths: Array, other: Array) -> Stratum:
    """Win-rate where the answers are equally long, within a tenth of the other's length.

    Args:
        verdict: shape [S, N].
        lengths: shape [S, N], of the answers.
        other: shape [N] or [S, N], lengths of what it is compared with.
    """
    difference = np.asarray(lengths, dtype=np.float64) - other
    near = np.abs(difference) <= EQUAL * np.broadcast_to(np.asarray(other, dtype=np.float64), difference.shape)
    return _stratum(np.asarray(verdict, dtype=np.float64), difference, near)


def by_quintile(verdict: Array, difference: Array) -> list[Stratum]:
    """Win-rate by fifth of the length difference, from the shortest answers to the longest; equal differences stay together.

    Args:
        verdict: shape [S, N].
        difference: shape [S, N], length of the answer less the other's.
    """
    difference = np.asarray(difference, dtype=np.float64)
    edges = np.unique(np.quantile(difference, [0.2, 0.4, 0.6, 0.8], method="inverted_cdf"))
    place = np.searchsorted(edges, difference, side="left")
    y = np.asarray(verdict, dtype=np.float64)
    return [_stratum(y, difference, place == k) for k in range(len(edges) + 1) if (place == k).any()]


def _stratum(verdict: Array, difference: Array, inside: npt.NDArray[np.bool_]) -> Stratum:
    """The mean of the verdicts inside, a ratio of two means over the prompts that have any of them."""
    columns = inside.any(0)
    low, high = (float(difference[inside].min()), float(difference[inside].max())) if inside.any() else (np.nan, np.nan)
    if columns.sum() < FEWEST:
        return Stratum(low, high, None, int(inside.sum()))
    mean = float(verdict[inside].mean())
    share = inside[:, columns]
    linear = mean + share * (verdict[:, columns] - mean) / share.mean()
    return Stratum(low, high, share_interval(replace(crossed_mean([linear]), value=mean)), int(inside.sum()))
