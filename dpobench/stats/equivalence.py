"""Equivalence: two one-sided tests of a difference against a margin, so that "no difference" can be claimed and not only not denied."""

from collections.abc import Mapping
from dataclasses import dataclass

from dpobench.stats.compare import holm
from dpobench.stats.crossed import Estimate

MARGIN = 0.02


@dataclass(frozen=True)
class Equivalence:
    """Whether a difference lies within a margin of zero.

    Args:
        margin: declared before looking, in the unit of the metric.
        p: p-value of "the difference is the margin or more, either way".
        p_adjusted: the same after Holm over the family.
        level: "method" or "checkpoint", as of the difference.
    """

    margin: float
    p: float
    p_adjusted: float
    level: str

    def shown(self, alpha: float = 0.05) -> bool:
        """Whether equivalence within the margin is shown at this level."""
        return self.p_adjusted < alpha

    def verdict(self, p_difference: float, alpha: float = 0.05) -> str:
        """In words, beside the adjusted p-value of "no difference": a difference may be real and yet too small to matter.

        Args:
            p_difference: adjusted p-value of the test of a difference.
            alpha: level of both families.
        """
        within = f"within {self.margin:g}"
        if self.shown(alpha):
            said = f"different, yet {within}" if p_difference < alpha else f"equivalent {within}"
        else:
            said = f"different, not shown {within}" if p_difference < alpha else "neither shown"
        return said if self.level == "method" else f"{said} (this checkpoint only)"


def two_one_sided(difference: Estimate, margin: float = MARGIN, largest: float | None = None) -> float:
    """P-value of two one-sided tests: the larger of "it is -margin or less" and "it is margin or more".

    Args:
        difference: with its error.
        margin: above zero, in the unit of the metric.
        largest: the most that one prompt's difference can be, where it is known; 1 for shares.

    Returns: p; below alpha exactly where the interval of coverage 1 - 2 alpha lies within the margin. Where no prompt differed at all
        there is no error to go by: if the difference were the margin, a prompt would differ with a chance of margin / largest at
        least, and none of N would with (1 - margin / largest)^N at most. That is p; where no bound is known it is 1.

    Raises:
        ValueError: the margin is not above zero.

    References: Schuirmann 1987, https://doi.org/10.1007/BF01068419.
    """
    if not margin > 0:
        raise ValueError(f"margin {margin}: must be above zero")
    if difference.se == 0 and difference.value == 0:
        return 1.0 if largest is None else max(0.0, 1 - margin / largest) ** difference.n_prompts
    below, above = difference.p_of(-margin) / 2, difference.p_of(margin) / 2
    return max(below if difference.value > -margin else 1 - below, above if difference.value < margin else 1 - above)


def equivalences(
    differences: Mapping[str, Estimate], margin: float = MARGIN, largest: float | None = None
) -> dict[str, Equivalence]:
    """Test a family of differences, such as those of all variants to the control; p-values adjusted by Holm.

    Args:
        differences: by name.
        margin: above zero.
        largest: the most that one prompt's difference can be, where it is known.
    """
    found = {name: two_one_sided(difference, margin, largest) for name, difference in differences.items()}
    adjusted = dict(zip(found, holm(list(found.values())), strict=True))
    return {name: Equivalence(margin, p, adjusted[name], differences[name].level) for name, p in found.items()}
