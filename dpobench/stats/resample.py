"""The joint bootstrap: prompts drawn with replacement, the same for all cells, and seeds within each cell.

Drawing two or three seeds with replacement gives a variance too small by (S - 1)/S and quantiles of a normal
distribution where Student's with S - 1 degrees of freedom are due; and as every resample of the prompts already holds
the residual of the seeds' answers, it is counted twice. So the mean over seeds of each cell is moved instead, by
Student's t times the seeds' deviations, shrunk by what the residual explains of them. Where nothing but seeds
varies this is Student's interval, where they do not it is the bootstrap over prompts.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dpobench.stats.crossed import Estimate

Array = npt.NDArray[np.float64]
CONFIDENCE = 0.95


def prompt_weights(prompts: int, resamples: int, seed: int) -> Array:
    """How often each prompt is drawn, over the number of prompts.

    Args:
        prompts: their number.
        resamples: number of draws.
        seed: of the draws.

    Returns: shape [resamples, prompts]; every row sums to one.
    """
    counts = np.random.default_rng(seed).multinomial(prompts, np.full(prompts, 1 / prompts), size=resamples)
    return counts / prompts


def seed_choice(seeds: int, resamples: int, rng: np.random.Generator) -> Array:
    """The chance of the seeds in every resample, shape [S, resamples]: normal weights, scaled together to Student's t."""
    if seeds < 2:
        return np.zeros((seeds, resamples))
    student = np.sqrt((seeds - 1) / rng.chisquare(seeds - 1, resamples))
    return np.asarray(rng.normal(size=(seeds, resamples)) * student)


def seed_shifts(table: Array, choice: Array) -> Array:
    """The shifts of one cell's means by the choice of seeds, beyond the noise of the prompts.

    Args:
        table: shape [K, S, N]: K measures of S seeds on the same prompts.
        choice: shape [S, resamples], from `seed_choice`.

    Returns: shape [K, resamples], with the measures' covariance over seeds; zero where there is one seed.
    """
    seeds, prompts = table.shape[1:]
    if seeds < 2:
        return np.zeros((len(table), choice.shape[1]))
    means = table.mean(2)
    deviations = means - means.mean(1, keepdims=True)
    rest = table - table.mean(1, keepdims=True) - deviations[:, :, None]
    residual = (rest**2).sum((1, 2)) / ((seeds - 1) * max(1, prompts - 1)) / prompts
    between = (deviations**2).sum(1) / (seeds - 1)
    shrinkage = np.sqrt(np.clip(1 - residual / np.where(between > 0, between, 1), 0, 1))
    directions = deviations * shrinkage[:, None] / np.sqrt(seeds * (seeds - 1))
    return np.asarray(directions @ choice)


def draws(
    cells: Sequence[Array], resamples: int = 2000, seed: int = 0, trainings: Sequence[Hashable] | None = None
) -> list[Array]:
    """Means of cells over resamples of prompts, the same prompts for all of them, and seeds.

    Args:
        cells: for each an array [K, S, N] of K measures; N is common to all, its columns the same prompts. A reference without
            seeds has S = 1.
        resamples: number of draws.
        seed: of the resampling.
        trainings: a key of each cell's trainings; seeds of equal keys are drawn together. Without it all are different trainings.

    Returns: for each cell its means [K, resamples].
    """
    weights = prompt_weights(cells[0].shape[2], resamples, seed).T
    rng = np.random.default_rng([seed, 1])
    known: dict[Hashable, Array] = {}
    means = []
    for cell, training in zip(cells, range(len(cells)) if trainings is None else trainings, strict=True):
        if training not in known:
            known[training] = seed_choice(cell.shape[1], resamples, rng)
        means.append(cell.mean(1) @ weights + seed_shifts(cell, known[training]))
    return means


def percentiles(value: float, drawn: Array, prompts: int, seeds: int) -> Estimate:
    """The 95 % percentile interval of an estimate.

    Args:
        value: the estimate; infinite where it lies beyond all measurements.
        drawn: shape [resamples]; infinite draws are allowed.
        prompts: number of prompts.
        seeds: number of seeds.

    Returns: the standard error is the interval's half-width over the normal quantile, so that `p` agrees with the interval.
    """
    low, high = np.quantile(drawn, [0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2], method="inverted_cdf")
    half = (high - low) / 2 if np.isfinite([low, high]).all() else np.inf
    return Estimate(float(value), float(low), float(high), float(half / 1.959963984540054), np.inf, prompts, seeds)


@dataclass(frozen=True)
class Ellipse:
    """A region around a point of the plane.

    Args:
        x: first coordinate of its centre.
        y: second coordinate.
        wide: half of its extent along the first axis.
        high: half of its extent along the second.
        tilt: -1 to 1, how far the coordinates go together; 0 for axes that stand straight.
    """

    x: float
    y: float
    wide: float
    high: float
    tilt: float

    def distance(self, x: npt.ArrayLike, y: npt.ArrayLike) -> Array:
        """How far points are from the centre: below 1 within, 1 on the edge. Of axes without extent it is NaN or infinite."""
        with np.errstate(divide="ignore", invalid="ignore"):
            across, up = (np.asarray(x) - self.x) / self.wide, (np.asarray(y) - self.y) / self.high
        return np.sqrt(across**2 + (up - self.tilt * across) ** 2 / (1 - self.tilt**2))

    def edge(self) -> tuple[Array, Array]:
        """Points along it, first coordinates and second ones."""
        turn = np.linspace(0, 2 * np.pi, 73)
        up = self.tilt * np.cos(turn) + np.sqrt(1 - self.tilt**2) * np.sin(turn)
        return self.x + self.wide * np.cos(turn), self.y + self.high * up


def ellipse(x: float, y: float, first: Array, second: Array) -> Ellipse:
    """The ellipse around an estimated point that holds 95 % of its joint resamples.

    Shape from percentiles and ranks, for with few seeds the resamples have no variance to speak of; size by counting, for they are no
    normal pair either.

    Args:
        x: first coordinate of the estimate.
        y: second coordinate.
        first: shape [resamples], first coordinates of the resamples.
        second: shape [resamples], the second ones.

    Returns: the ellipse; flat where a coordinate does not vary.
    """
    wide, high = (float(np.subtract(*np.quantile(v, [0.975, 0.025]))) / 2 for v in (first, second))
    if wide == 0 or high == 0:
        return Ellipse(x, y, wide, high, 0.0)
    ranks = [np.argsort(np.argsort(v)).astype(np.float64) for v in (first, second)]
    tilt = float(np.clip(np.corrcoef(ranks[0], ranks[1])[0, 1], -0.999, 0.999))
    size = float(np.quantile(Ellipse(x, y, wide, high, tilt).distance(first, second), CONFIDENCE))
    return Ellipse(x, y, size * wide, size * high, tilt)
