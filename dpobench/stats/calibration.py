"""Whether a probability means what it says."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


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
    found = np.bincount(place, weights=right, minlength=bins)[filled] / count[filled]
    return Calibration(
        tuple(stated.tolist()),
        tuple(found.tolist()),
        tuple(count[filled].tolist()),
        float((np.abs(stated - found) * count[filled]).sum() / len(p)),
        float(((1 - p) ** 2).mean()),
    )
