"""What can be had at which distance from the reference."""

import numpy as np
import numpy.typing as npt


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
