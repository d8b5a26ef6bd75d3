"""Tests of two checkpoints on the same prompts or documents, without a distribution assumed.

Prompts are their only source of chance: they compare these two checkpoints, not two methods (`compare` does that). McNemar's test is for
verdicts of 0 and 1. On graded scores the sign test and Wilcoxon's test something other than the mean, so that there is neither here; the
permutation test is of the mean.
"""

import numpy as np
import numpy.typing as npt
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as mcnemar_test

Array = npt.NDArray[np.float64]
# Changed documents below which McNemar's test counts exactly.
FEW = 25


def mcnemar(before: npt.ArrayLike, after: npt.ArrayLike) -> float:
    """Whether as many documents were gained as lost.

    Args:
        before: shape [N], right (1) or wrong (0) per document.
        after: shape [N], the same documents.

    Returns: two-sided p-value; exact where fewer than 25 documents changed (then it errs less often than it says), else by
        chi-squared without continuity correction. `mcnemar([1] * 6, [0] * 6)` is 2/64.

    Raises:
        ValueError: a value is neither 0 nor 1, or the shapes differ.

    References: McNemar 1947, https://doi.org/10.1007/BF02295996.
    """
    first, second = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    if first.shape != second.shape or not np.isin(np.concatenate([first, second]), (0.0, 1.0)).all():
        raise ValueError(
            "McNemar's test takes two equally long lists of zeros and ones; graded scores go to `permutation`"
        )
    lost, gained = int(((first == 1) & (second == 0)).sum()), int(((first == 0) & (second == 1)).sum())
    if lost + gained == 0:
        return 1.0
    same = [int(((first == value) & (second == value)).sum()) for value in (1, 0)]
    table = [[same[0], lost], [gained, same[1]]]
    return float(mcnemar_test(table, exact=lost + gained < FEW, correction=False).pvalue)


def permutation(differences: npt.ArrayLike, seed: int = 0, *, resamples: int = 9999) -> float:
    """Whether the mean paired difference is zero, by swapping the two sides of each pair.

    Args:
        differences: shape [N], one per prompt or document, in any unit.
        seed: of the swaps; where all 2^N of them are no more than `resamples`, each is taken once.
        resamples: random swaps.

    Returns: two-sided p-value, at least 1/(resamples + 1). `permutation([1, 1, 1])` is 2/8.
    """
    sample = np.asarray(differences, dtype=np.float64)
    moved = sample[sample != 0]  # a pair without a difference is the same when swapped
    if not len(moved):
        return 1.0
    test = stats.permutation_test(
        (moved,),
        _mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, 2_000_000 // len(moved)),
        rng=np.random.default_rng(seed),
    )
    return float(test.pvalue)


def _mean(sample: Array, axis: int = -1) -> Array:
    return np.asarray(sample.mean(axis=axis))
