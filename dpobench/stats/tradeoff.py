"""The best of k tries, expected without drawing any: of k answers to one prompt, or of k hyper-parameter trials.

Of n draws every k are equally likely to be the tries, so the j-th smallest is the best of them with the chance C(j -
1, k - 1) / C(n, k). The mean under these weights is unbiased for the best of k; taking the maximum of the first k
would throw the others away.

References: Dodge et al. 2019, Show Your Work, https://arxiv.org/abs/1909.03004; the unbiased form is that of pass@k in
Chen et al. 2021, https://arxiv.org/abs/2107.03374.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt
from scipy import special

from dpobench.stats.crossed import Estimate, crossed_difference, crossed_mean
from dpobench.stats.resample import draws, percentiles

Array = npt.NDArray[np.float64]


def best_weights(by: Array, k: int) -> Array:
    """The chance of each draw to be the best of k, equals sharing.

    Args:
        by: shape [..., n], the scores that the best is picked by.
        k: tries, 1 to n.

    Returns: shape [..., n], sums to one over the last axis; `best_weights([1, 2, 3], 2)` is [0, 1/3, 2/3].

    Raises:
        ValueError: there are fewer than k draws.
    """
    order = np.asarray(by, dtype=np.float64)
    count = order.shape[-1]
    if not 1 <= k <= count:
        raise ValueError(f"the best of {k} cannot be estimated from {count} draws; k is 1 to {count}")
    below = (order[..., None, :] < order[..., :, None]).sum(-1)
    upto = (order[..., None, :] <= order[..., :, None]).sum(-1)
    mass = special.binom(upto, k) - special.binom(below, k)
    return np.asarray(mass / (upto - below) / special.binom(count, k))


def best_trials(trials: Sequence[Array], selection: Sequence[float], ks: Sequence[int]) -> list[Estimate]:
    """Expected value of the best of k trials, picked on the selection prompts and read on the test prompts.

    Args:
        trials: for each trial an array [S, N] on the test prompts, columns the same prompts; trials may differ in S.
        selection: each trial's mean on the selection prompts; the best of k is the one with the greatest.
        ks: tries, each 1 to the number of trials.

    Returns: for each k the estimate with an interval over prompts and seeds. The trials are those of the grid: nothing follows for
        another grid.
    """
    estimates = []
    seeds = min(len(trial) for trial in trials)
    for k in ks:
        weights = best_weights(np.asarray(selection, dtype=np.float64), k)
        # Trials are trained apart, so the spreads of their seeds add; a trial's seeds stand for as many of the shortest one's.
        rows = sum(w * _folded(np.asarray(t, dtype=np.float64), seeds) for w, t in zip(weights, trials, strict=True))
        value = sum(float(w) * float(np.mean(t)) for w, t in zip(weights, trials, strict=True))
        around = crossed_mean([np.asarray(rows)])
        shift = value - around.value
        estimates.append(replace(around, value=value, low=around.low + shift, high=around.high + shift))
    return estimates


def _folded(values: Array, seeds: int) -> Array:
    """Seeds of one trial as `seeds` rows, each the mean of every so many."""
    return np.stack([values[row::seeds].mean(0) for row in range(seeds)])


BUDGETS = (1.0, 3.0, 10.0, 30.0)
# A variant is read at a budget if it has a cell at half of it or farther, and one at twice of it or nearer.
NEAR = 2.0


def pareto(distance: npt.ArrayLike, value: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """Points that no other point beats at the same distance or less.

    Args:
        distance: shape [N]; less is better.
        value: shape [N]; more is better. A point with a missing coordinate is never in the set.

    Returns: shape [N]; `pareto([1, 2, 3], [0.5, 0.4, 0.6])` is [True, False, True].
    """
    x, y = np.asarray(distance, dtype=np.float64), np.asarray(value, dtype=np.float64)
    closer_or_equal = x[None, :] <= x[:, None]
    higher_or_equal = y[None, :] >= y[:, None]
    strictly = (x[None, :] < x[:, None]) | (y[None, :] > y[:, None])
    beaten = (closer_or_equal & higher_or_equal & strictly).any(axis=1)
    return np.asarray(~beaten & np.isfinite(x) & np.isfinite(y))


@dataclass(frozen=True)
class Cell:
    """One configuration of a variant, in the order of its seeds.

    Args:
        variant: its variant.
        value: shape [S, N] on the test prompts; more is better.
        distance: shape [S, N], nats, on the same prompts.
        selection_value: shape [S], each seed's mean value on the selection prompts.
        selection_distance: shape [S], its mean distance on them, nats.
        training: cells of one name are points of the same trainings, seed by seed; empty where no other cell shares its trainings.
    """

    variant: str
    value: Array
    distance: Array
    selection_value: Array
    selection_distance: Array
    training: str = ""


@dataclass(frozen=True)
class Frontier:
    """One variant's trade-off.

    Args:
        picked: indices of the cells that all seeds together put on its frontier, from near to far.
        hypervolume: mean advantage over the reference, over the square root of the distance from zero to the common budget.
        to_control: the same less the control's, on the same prompts; None for the control itself.
        at: value at each budget, None where the variant never came near it.
        needed: nats to the target; infinite where it is not reached.
    """

    picked: tuple[int, ...]
    hypervolume: Estimate
    to_control: Estimate | None
    at: Mapping[float, Estimate | None]
    needed: Estimate


@dataclass(frozen=True)
class Tradeoff:
    """All frontiers, and the joint bootstrap of the cells.

    Args:
        budget: common to all hypervolumes, nats.
        frontiers: by variant.
        membership: for each cell the share of resamples in which no other cell of any variant beats it.
        value: mean of each cell in every resample, shape [C, resamples].
        distance: the same of the distances.
    """

    budget: float
    frontiers: Mapping[str, Frontier]
    membership: Array
    value: Array
    distance: Array


def tradeoff(
    cells: Sequence[Cell],
    base: Array,
    control: str | None = None,
    *,
    target: float = 0.6,
    budgets: Sequence[float] = BUDGETS,
    resamples: int = 2000,
    seed: int = 0,
) -> Tradeoff:
    """Read every variant's frontier.

    Args:
        cells: of all variants, with the same test prompts in the same columns.
        base: shape [N], the reference's values on them.
        control: variant whose hypervolume the others' are compared with.
        target: value whose price in nats is estimated.
        budgets: nats, ascending. The hypervolume goes to the first of them that no cell lies beyond on the selection prompts, or to
            the last.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Returns: estimates on the test prompts with 95 % intervals. Hypervolume and values at a budget are smooth in the means: their
        jackknife pseudo-values over prompts go through the crossed formulas. The price of the target, which may be infinite, and the
        Pareto set are read from the joint bootstrap. The square root is the scale on which Gao, Schulman and Hilton 2023
        (https://arxiv.org/abs/2210.10760) describe how rewards rise.
    """
    base = np.asarray(base, dtype=np.float64)
    farthest = max(float(cell.selection_distance.mean()) for cell in cells)
    budget = next((b for b in budgets if b >= farthest), budgets[-1])
    whose = [(cell.training or place) for place, cell in enumerate(cells)]
    tables = [np.stack([cell.value, cell.distance]) for cell in cells]
    drawn = draws([*tables, base[None, None]], resamples, seed, [*whose, len(cells)])
    pooled = _Means(
        np.stack([np.r_[cell.value.mean(), d[0]] for cell, d in zip(cells, drawn, strict=False)]),
        np.stack([np.r_[cell.distance.mean(), np.maximum(d[1], 0.0)] for cell, d in zip(cells, drawn, strict=False)]),
        np.r_[base.mean(), drawn[-1][0]],
    )
    variants = dict.fromkeys(cell.variant for cell in cells)
    by_variant = {v: [i for i, cell in enumerate(cells) if cell.variant == v] for v in variants}
    folds = {variant: _folds(cells, places, base) for variant, places in by_variant.items()}
    areas = {variant: _pseudo(read, partial(_area, budget=budget)) for variant, read in folds.items()}
    frontiers = {}
    for variant, places in by_variant.items():
        far = [float(cells[i].selection_distance.mean()) for i in places]
        near = {b: max(far) >= b / NEAR and min(far) <= b * NEAR for b in budgets}
        at = {b: _pseudo(folds[variant], partial(_at, budget=b)) if near[b] else None for b in budgets}
        values = [float(cells[i].selection_value.mean()) for i in places]
        picked = frontier_of(far, values, float(base.mean()))
        price = _needed(_along(pooled, [places[i] for i in picked], ()), target)
        frontiers[variant] = Frontier(
            tuple(places[i] for i in picked),
            _mean(areas[variant]),
            _difference(areas[variant], areas[control]) if control in areas and variant != control else None,
            {b: _mean(pseudo) if pseudo else None for b, pseudo in at.items()},
            percentiles(price[0], price[1:], len(base), min(len(cells[i].value) for i in places)),
        )
    value, distance = pooled.value[:, 1:], pooled.distance[:, 1:]
    member = np.mean([pareto(distance[:, b], value[:, b]) for b in range(resamples)], axis=0)
    return Tradeoff(budget, frontiers, member, value, distance)


def frontier_of(distance: Sequence[float], value: Sequence[float], base: float) -> list[int]:
    """Places of the cells on a frontier and above the reference, from near to far.

    Args:
        distance: of each cell on the selection prompts, nats.
        value: of each cell on the selection prompts; more is better.
        base: value of the reference.
    """
    on_frontier = (pareto(distance, value) & (np.asarray(value) > base)).tolist()
    return sorted((i for i, inside in enumerate(on_frontier) if inside), key=lambda i: distance[i])


@dataclass(frozen=True)
class _Means:
    """Means of cells in many samples of prompts, the first of them the whole: value and distance [C, M], the reference's [M]."""

    value: Array
    distance: Array
    base: Array


@dataclass(frozen=True)
class _Path:
    """A frontier in many samples: knots from near to far [k, M], the reference's values [M], distances on the selection prompts [k]."""

    value: Array
    distance: Array
    base: Array
    far: Sequence[float]


def _along(means: _Means, picked: Sequence[int], far: Sequence[float]) -> _Path:
    places = list(picked)
    return _Path(means.value[places], means.distance[places], means.base, far)


def _folds(cells: Sequence[Cell], places: Sequence[int], base: Array) -> list[_Path]:
    """One path per seed: its means, all prompts and each left out in turn, along the frontier that the other seeds picked."""
    count = min(len(cells[i].value) for i in places)
    paths = []
    for fold in range(count):
        held = [np.arange(len(cells[i].value)) % count == fold for i in places]
        others = [mask if count == 1 else ~mask for mask in held]
        far = [float(cells[i].selection_distance[mask].mean()) for i, mask in zip(places, others, strict=True)]
        values = [float(cells[i].selection_value[mask].mean()) for i, mask in zip(places, others, strict=True)]
        means = _Means(
            np.stack([_left_out(cells[i].value[mask].mean(0)) for i, mask in zip(places, held, strict=True)]),
            np.stack([_left_out(cells[i].distance[mask].mean(0)) for i, mask in zip(places, held, strict=True)]),
            _left_out(base),
        )
        picked = frontier_of(far, values, float(base.mean()))
        paths.append(_along(means, picked, [far[i] for i in picked]))
    return paths


def _left_out(values: Array) -> Array:
    """The mean, then the mean without each value in turn."""
    means: Array = np.r_[values.mean(), (values.sum() - values) / (len(values) - 1)]
    return means


def _pseudo(paths: Sequence[_Path], read: Callable[[_Path], Array]) -> tuple[float, Array]:
    """The mean over seeds of a functional, and its pseudo-values [S, N]."""
    values = np.stack([read(path) for path in paths])
    count = values.shape[1] - 1
    return float(values[:, 0].mean()), count * values[:, :1] - (count - 1) * values[:, 1:]


def _mean(functional: tuple[float, Array]) -> Estimate:
    return _around(functional[0], crossed_mean([functional[1]]))


def _difference(functional: tuple[float, Array], control: tuple[float, Array]) -> Estimate:
    return _around(functional[0] - control[0], crossed_difference([functional[1]], [control[1]]))


def _around(value: float, pseudo: Estimate) -> Estimate:
    shift = value - pseudo.value
    return replace(pseudo, value=value, low=pseudo.low + shift, high=pseudo.high + shift)


def _area(path: _Path, budget: float) -> Array:
    """Area under the steps. Linear in the values: a step that turns out to lie lower counts as it lies."""
    inside = [i for i, far in enumerate(path.far) if far <= budget]
    ends = np.concatenate([np.sqrt(path.distance[inside] / budget), np.ones((1, len(path.base)))])
    return np.asarray(((path.value[inside] - path.base) * np.diff(ends, axis=0)).sum(0))


def _knots(path: _Path) -> tuple[Array, Array]:
    return np.concatenate([0 * path.base[None], path.distance]), np.concatenate([path.base[None], path.value])


def _at(path: _Path, budget: float) -> Array:
    """Value at a distance; beyond the last cell the value of that cell."""
    x, y = _knots(path)
    left = sum(far <= budget for far in path.far)
    if left == len(path.far):
        last: Array = y[-1]
        return last
    width = x[left + 1] - x[left]
    share = np.where(width > 0, (budget - x[left]) / np.where(width > 0, width, 1.0), 1.0)
    return np.asarray(y[left] + np.clip(share, 0.0, 1.0) * (y[left + 1] - y[left]))


def _needed(path: _Path, target: float) -> Array:
    """The first distance at which the path is as high as the target, infinite where it never is."""
    x, y = _knots(path)
    price = np.where(path.base >= target, 0.0, np.inf)
    for left in range(len(x) - 1):
        rises = (y[left] < target) & (y[left + 1] >= target)
        share = np.where(rises, (target - y[left]) / np.where(rises, y[left + 1] - y[left], 1.0), 0.0)
        price = np.minimum(price, np.where(rises, x[left] + share * (x[left + 1] - x[left]), np.inf))
    return np.asarray(price)
