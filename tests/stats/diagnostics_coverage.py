"""How often the diagnostics' intervals hold the truth: `python -m tests.stats.diagnostics_coverage` prints the whole table."""

import sys
from collections.abc import Callable
from functools import cache

import numpy as np
from scipy import special

from dpobench.stats.crossed import crossed_mean
from dpobench.stats.reliability import calibration_error, crossed_correlation, spread_between

Rng = np.random.Generator


def stated(rng: Rng, seeds: int, prompts: int, scale: float, boldness: float) -> np.ndarray:
    """Stated probability of the outcome that happened: logits of the truth, stretched, each seed seeing them with its own noise."""
    logit = rng.normal(0, scale, prompts)
    label = rng.random(prompts) < special.expit(logit)
    logits = boldness * (logit + rng.normal(0, 0.2 * scale * (seeds > 1), (seeds, prompts)))
    return np.where(label, special.expit(logits), special.expit(-logits))


@cache
def true_error(scale: float, boldness: float) -> float:
    rng = np.random.default_rng(0)
    return calibration_error(stated(rng, 1, 1_000_000, scale, boldness), resamples=1).plain


def ece(rng: Rng, prompts: int, scale: float, boldness: float, truth: float) -> bool:
    error = calibration_error(stated(rng, 1, prompts, scale, boldness), resamples=300)
    return error.low <= truth <= error.high


def brier(rng: Rng, seeds: int, prompts: int, boldness: float, truth: float) -> bool:
    estimate = crossed_mean([(1 - stated(rng, seeds, prompts, 2.0, boldness)) ** 2])
    return estimate.low <= truth <= estimate.high


def correlation(rng: Rng, seeds: int, prompts: int, rho: float, heavy: bool) -> bool:
    """Seeds share the prompts' difficulty; with heavy tails both measurements are scaled by one chi-squared variable."""
    shared, each = (rng.normal(size=(n, prompts, 2)) for n in (1, seeds))
    z = np.sqrt(0.5) * shared + np.sqrt(0.5) * each
    x, y = z[..., 0], rho * z[..., 0] + np.sqrt(1 - rho**2) * z[..., 1]
    scale = np.sqrt(8 / rng.chisquare(8, prompts)) if heavy else 1.0
    estimate = crossed_correlation(x * scale, y * scale)
    return estimate is not None and estimate.low <= rho <= estimate.high


def spread(rng: Rng, seeds: int) -> bool:
    _, low, high = spread_between(rng.normal(0, 0.02, seeds))
    return low <= 0.02 <= high


def share(trial: Callable[[Rng], bool], repeats: int, seed: int = 0) -> float:
    """Share of repeats in which the interval held the truth."""
    rng = np.random.default_rng(seed)
    return sum(trial(rng) for _ in range(repeats)) / repeats


def main(repeats: int = 1000) -> None:
    """Print a line per design."""
    for scale, boldness in ((1.0, 1.0), (2.0, 1.0), (1.0, 1.5), (1.0, 3.0), (0.5, 0.5)):
        truth = true_error(scale, boldness) if boldness != 1 else 0.0
        for prompts in (264, 1000):
            held = share(lambda rng, n=prompts, s=scale, b=boldness, t=truth: ece(rng, n, s, b, t), repeats)
            sys.stdout.write(f"ECE, {prompts} prompts, logit sd {scale}, stretched {boldness}: {held:.3f}\n")
    for seeds, prompts, boldness in ((1, 264, 1.0), (1, 264, 3.0), (3, 264, 3.0), (3, 1000, 3.0)):
        truth = float(((1 - stated(np.random.default_rng(1), max(2, seeds), 1_000_000, 2.0, boldness)) ** 2).mean())
        if seeds == 1:
            truth = float(((1 - stated(np.random.default_rng(1), 1, 1_000_000, 2.0, boldness)) ** 2).mean())
        held = share(lambda rng, s=seeds, n=prompts, b=boldness, t=truth: brier(rng, s, n, b, t), repeats)
        sys.stdout.write(f"Brier, {seeds} seeds, {prompts} prompts, stretched {boldness}: {held:.3f}\n")
    for seeds, prompts in ((1, 50), (1, 264), (3, 264)):
        for rho, heavy in ((0.0, False), (0.5, False), (0.0, True), (0.5, True), (0.9, False)):
            held = share(lambda rng, s=seeds, n=prompts, r=rho, h=heavy: correlation(rng, s, n, r, h), repeats)
            tails = "heavy tails" if heavy else "normal"
            sys.stdout.write(f"correlation {rho}, {seeds} seeds, {prompts} prompts, {tails}: {held:.3f}\n")
    for seeds in (2, 3, 5):
        sys.stdout.write(f"sd between {seeds} seeds: {share(lambda rng, s=seeds: spread(rng, s), repeats):.3f}\n")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
