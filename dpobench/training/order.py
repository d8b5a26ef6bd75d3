"""Which pairs a step takes: a pure function of seed and step."""

from functools import lru_cache

import numpy as np
import numpy.typing as npt


@lru_cache(maxsize=8)
def order(seed: int, epoch: int, pairs: int) -> npt.NDArray[np.int64]:
    """Order of the pairs in an epoch: a pure function of seed and epoch, alike for every variant."""
    return np.random.default_rng([seed, epoch]).permutation(pairs)


def batch_at(step: int, batch: int, pairs: int, seed: int) -> list[int]:
    """Indices of the pairs of a step; epochs follow each other without a gap, so that every batch is full."""
    first = step * batch
    return [int(order(seed, place // pairs, pairs)[place % pairs]) for place in range(first, first + batch)]
