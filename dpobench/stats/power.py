"""Power of a design before it is run: smallest detectable effect, chance to show an effect, and the design that an effect needs."""

import math

import numpy as np
from scipy import special

from dpobench.stats.components import Components
from dpobench.stats.crossed import Array, Spread, between_df

DRAWS = 4000
MOST_SEEDS, MOST_PROMPTS = 64, 1_000_000


def power(
    effect: float, variances: Components, seeds: int, prompts: int, *, comparisons: int = 1, alpha: float = 0.05
) -> float:
    """Chance that a true difference is shown by the test the report uses, at Holm's first and hardest step.

    Args:
        effect: true difference of a variant to the control, in the unit of the metric.
        variances: of the metric, as estimated by `components`.
        seeds: trainings of each; with one, the power of a claim about two checkpoints.
        prompts: test prompts.
        comparisons: variants tested against the control.
        alpha: level of the family.

    Returns: 0 to 1, by 4000 simulated errors with the normal chance of each computed exactly (standard error below 0.005).
    """
    half = _half_widths(variances, seeds, prompts, alpha / comparisons)
    return _chance(effect, half, variances.se(seeds, prompts))


def smallest_effect(
    variances: Components, seeds: int, prompts: int, *, comparisons: int = 1, alpha: float = 0.05, chance: float = 0.8
) -> float:
    """The difference that is shown with this chance.

    Args:
        variances: of the metric, as estimated by `components`.
        seeds: trainings of each.
        prompts: test prompts.
        comparisons: variants tested against the control.
        alpha: level of the family.
        chance: of showing it.

    Returns: in the unit of the metric; 0 where nothing varies.
    """
    se = variances.se(seeds, prompts)
    if se == 0:
        return 0.0
    half = _half_widths(variances, seeds, prompts, alpha / comparisons)
    low, high = 0.0, float(half.max()) + 10 * se
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if _chance(middle, half, se) < chance else (low, middle)
    return high


def seeds_needed(
    effect: float,
    variances: Components,
    prompts: int,
    *,
    comparisons: int = 1,
    alpha: float = 0.05,
    chance: float = 0.8,
) -> int | None:
    """Fewest seeds, two or more, that show an effect with this chance; None where 64 do not.

    Args: as of `power`, and `chance` of showing the effect.
    """

    def shown_by(seeds: int) -> bool:
        return power(effect, variances, seeds, prompts, comparisons=comparisons, alpha=alpha) >= chance

    if not shown_by(MOST_SEEDS):
        return None
    return next(seeds for seeds in range(2, MOST_SEEDS + 1) if shown_by(seeds))


def prompts_needed(
    effect: float, variances: Components, seeds: int, *, comparisons: int = 1, alpha: float = 0.05, chance: float = 0.8
) -> int | None:
    """Fewest prompts that show an effect with this chance, to two figures; None where a million do not.

    Args: as of `power`, and `chance` of showing the effect.
    """

    def shown_by(prompts: int) -> bool:
        return power(effect, variances, seeds, prompts, comparisons=comparisons, alpha=alpha) >= chance

    low, high = 2, MOST_PROMPTS
    if not shown_by(high):
        return None
    while high > low * 1.01 + 1:
        middle = math.isqrt(low * high)
        low, high = (low, middle) if shown_by(middle) else (middle, high)
    step: int = 10 ** max(0, len(str(high)) - 2)
    return math.ceil(high / step) * step


def _half_widths(variances: Components, seeds: int, prompts: int, alpha: float) -> Array:
    """Half widths of the intervals that experiments of this design would print, shape [DRAWS]; the same draws at every call."""
    rng = np.random.default_rng(0)
    parts = variances.parts(seeds, prompts)
    residual, seed = parts["residual"], parts["seed"]
    sampled = (parts["prompt x variant"] + residual) * _mean_square(rng, prompts - 1)
    if seeds < 2:
        spread = Spread(sampled, prompts - 1.0)
    else:
        between = [(seed + residual) / 2 * _mean_square(rng, seeds - 1) for _ in range(2)]
        rest = residual * _mean_square(rng, 2 * (seeds - 1) * (prompts - 1))
        spread = Spread(sampled, prompts - 1.0, sum(between), between_df(between, [seeds, seeds]), rest)
    return np.asarray(spread.quantile(alpha) * np.sqrt(spread.variance))


def _mean_square(rng: np.random.Generator, freedom: int) -> Array:
    return np.asarray(rng.chisquare(freedom, DRAWS) / freedom)


def _chance(effect: float, half: Array, se: float) -> float:
    if se == 0:
        return 1.0 if effect else 0.0
    return float(np.mean(special.ndtr((effect - half) / se) + special.ndtr((-effect - half) / se)))
