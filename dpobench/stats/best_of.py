"""The best of k tries, expected without drawing any: of k answers to one prompt, or of k hyper-parameter trials.

Of n draws every k are equally likely to be the tries, so the j-th smallest is the best of them with the chance C(j -
1, k - 1) / C(n, k). The mean under these weights is unbiased for the best of k; taking the maximum of the first k
would throw the others away.

References: Dodge et al. 2019, Show Your Work, https://arxiv.org/abs/1909.03004; the unbiased form is that of pass@k in
Chen et al. 2021, https://arxiv.org/abs/2107.03374.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from scipy import special

from dpobench.stats.crossed import Estimate, crossed_mean

Array = npt.NDArray[np.float64]


def best_weights(by: Array, k: int) -> Array:
    """The chance of each draw to be the best of k, equals sharing.

    Args:
        by: shape [..., n], what the best is picked by.
        k: tries, 1 to n.

    Returns: shape [..., n], sums to one over the last axis; `best_weights([1, 2, 3], 2)` is [0, 1/3, 2/3].

    Raises:
        ValueError: there are fewer than k draws.
    """
    order = np.asarray(by, dtype=np.float64)
    count = order.shape[-1]
    if not 1 <= k <= count:
        raise ValueError(f"the best of {k} cannot be told from {count} draws; k is 1 to {count}")
    below = (order[..., None, :] < order[..., :, None]).sum(-1)
    upto = (order[..., None, :] <= order[..., :, None]).sum(-1)
    mass = special.binom(upto, k) - special.binom(below, k)
    return np.asarray(mass / (upto - below) / special.binom(count, k))


def best_of(values: Array, ks: Sequence[int], by: Array | None = None) -> list[Estimate]:
    """Expected value of the best of k draws.

    Args:
        values: shape [N, n], n independent draws for each of N prompts.
        ks: tries, each 1 to n.
        by: shape [N, n], what the best is picked by; the values themselves where it is not given. With another judge's scores here the
            curve shows what is really gained.

    Returns: for each k the mean over prompts, with the interval of a mean over prompts.
    """
    sample = np.asarray(values, dtype=np.float64)
    picked_by = sample if by is None else np.asarray(by, dtype=np.float64)
    return [crossed_mean([(best_weights(picked_by, k) * sample).sum(-1)[None]]) for k in ks]


def best_trials(trials: Sequence[Array], seen: Sequence[float], ks: Sequence[int]) -> list[Estimate]:
    """Expected value of the best of k trials, picked on the selection prompts and read on the test prompts.

    Args:
        trials: for each trial an array [S, N] on the test prompts, columns the same prompts; trials may differ in S.
        seen: each trial's mean on the selection prompts; the best of k is the one with the greatest.
        ks: tries, each 1 to the number of trials.

    Returns: for each k the estimate with an interval that knows prompts and seeds. The trials are those of the grid: it does not say
        what another grid would give.
    """
    found = []
    seeds = min(len(trial) for trial in trials)
    for k in ks:
        weights = best_weights(np.asarray(seen, dtype=np.float64), k)
        # Trials are trained apart, so the spreads of their seeds add; a trial's seeds stand for as many of the shortest one's.
        rows = sum(w * _folded(np.asarray(t, dtype=np.float64), seeds) for w, t in zip(weights, trials, strict=True))
        value = sum(float(w) * float(np.mean(t)) for w, t in zip(weights, trials, strict=True))
        around = crossed_mean([np.asarray(rows)])
        shift = value - around.value
        found.append(replace(around, value=value, low=around.low + shift, high=around.high + shift))
    return found


def _folded(values: Array, seeds: int) -> Array:
    """Seeds of one trial as `seeds` rows, each the mean of every so many."""
    return np.stack([values[row::seeds].mean(0) for row in range(seeds)])
