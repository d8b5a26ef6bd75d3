"""Coverage of the intervals of trade-offs, tournaments, length control, best-of-k and agreement, and the errors of the paired tests.

`python -m tests.stats.coverage_tradeoffs [REPETITIONS]` prints the table; the tests beside it run parts of it with fewer repetitions.
"""

import sys
from collections import defaultdict
from collections.abc import Callable, Iterator

import numpy as np
from scipy.special import expit
from scipy.stats import norm

from dpobench.stats import length, paired, resample, tournament, tradeoff
from dpobench.stats import reliability as agree
from tests.stats.simulate import best_of

Found = Iterator[tuple[str, float, float, float]]  # measure, low, high, truth


def frontier_worlds(
    rng: np.random.Generator, repetitions: int, seeds: int, prompts: int, seed_sd: float, together: bool = False
) -> Found:
    """Two variants of four cells; the two best are nearly equal, so that picking among them flatters whoever does it carelessly.

    Together: the cells of a variant are checkpoints of the same trainings, with one luck for all of them.
    """
    far, gain, count = np.array([0.5, 1.5, 5, 15] * 2), np.array([0.04, 0.09, 0.14, 0.13] * 2), 8
    log_sd, base = 5 * seed_sd, np.full(prompts, 0.5)
    drawn = np.random.default_rng(0).normal(size=(count, 2000)) * (seed_sd > 0)
    luck = np.repeat(drawn[::4], 4, axis=0) if together else drawn
    # A single training lies off its configuration; what is estimated is the mean over trainings.
    true_far = far[:, None] * np.exp(log_sd * luck - log_sd**2 / 2)
    true_value = np.repeat(0.5 + gain[:, None], true_far.shape[1], axis=1)
    start = np.full(true_far.shape[1], 0.5)
    for repetition in range(repetitions):
        shared, cells = rng.normal(0, 0.15, 2 * prompts), []
        for i in range(count):
            taste = rng.normal(0, 0.05, 2 * prompts)
            if not together or i % 4 == 0:
                better, farther = rng.normal(size=(2, seeds, 1))
            chance = 0.5 + gain[i] + shared + taste + seed_sd * better
            value = (rng.random((seeds, 2 * prompts)) < np.clip(chance, 0, 1)).astype(float)
            moved = far[i] * np.exp(log_sd * farther - log_sd**2 / 2)
            nats = moved * rng.gamma(2, 0.5, 2 * prompts) * rng.gamma(4, 0.25, (seeds, 2 * prompts))
            variant, test, selection = "ab"[i // 4], slice(prompts, None), slice(prompts)
            sides = value[:, test], nats[:, test], value[:, selection].mean(1), nats[:, selection].mean(1)
            cells.append(tradeoff.Cell(variant, *sides, variant if together else ""))
        result = tradeoff.tradeoff(cells, base, "a", resamples=300, seed=repetition)

        def true(variant: str, read: Callable[[tradeoff._Path], np.ndarray], cells=cells) -> float:
            members = [i for i, cell in enumerate(cells) if cell.variant == variant]
            total = []
            for fold in range(seeds):
                others = [s for s in range(seeds) if s != fold] or [0]
                away = [cells[i].selection_distance[others].mean() for i in members]
                picked = tradeoff.frontier_of(away, [cells[i].selection_value[others].mean() for i in members], 0.5)
                places = [members[j] for j in picked]
                path = tradeoff._Path(true_value[places], true_far[places], start, [away[j] for j in picked])
                total.append(read(path).mean())
            return float(np.mean(total))

        area = {v: true(v, lambda path, b=result.budget: tradeoff._area(path, b)) for v in "ab"}
        mine = result.frontiers["b"]
        yield "hypervolume", mine.hypervolume.low, mine.hypervolume.high, area["b"]
        yield "less the control's", mine.to_control.low, mine.to_control.high, area["b"] - area["a"]
        for budget, estimate in mine.at.items():
            if estimate:
                yield (
                    f"value at {budget:g}",
                    estimate.low,
                    estimate.high,
                    true("b", lambda p, b=budget: tradeoff._at(p, b)),
                )
        picked = list(mine.picked)
        path = tradeoff._Path(0.5 + gain[picked, None], far[picked, None], np.array([0.5]), ())
        yield "nats for 60 %", mine.needed.low, mine.needed.high, float(tradeoff._needed(path, 0.6)[0])


def ellipse_worlds(rng: np.random.Generator, repetitions: int, seeds: int, prompts: int, seed_sd: float) -> Found:
    """One cell; trainings that went farther win more often."""
    log_sd = 5 * seed_sd
    for repetition in range(repetitions):
        common, separate = rng.normal(size=(2, seeds, 1))
        chance = np.clip(0.65 + rng.normal(0, 0.15, prompts) + seed_sd * common, 0, 1)
        moved = 5 * np.exp(log_sd * (0.6 * common + 0.8 * separate) - log_sd**2 / 2)
        value = (rng.random((seeds, prompts)) < chance).astype(float)
        nats = moved * rng.gamma(2, 0.5, prompts) * rng.gamma(4, 0.25, (seeds, prompts))
        ((selection, away),) = resample.draws([np.stack([value, nats])], 1000, repetition)
        around = resample.ellipse(float(np.log(nats.mean())), value.mean(), np.log(np.maximum(away, 1e-3)), selection)
        # A distance from its centre below 1 is within.
        yield "ellipse", 0.0, 1.0, float(around.distance(np.log(5), 0.65))


def tournament_worlds(rng: np.random.Generator, repetitions: int, seeds: int, prompts: int, seed_sd: float) -> Found:
    """Three variants and the reference, rewards normal; the truth is the fit to the true chances."""
    means = {"a": 0.3, "b": 0.6, "c": 0.2, "reference": 0.0}
    names, var = list(means), {n: 1.0 if n == "reference" else 1.09 + seed_sd**2 for n in means}
    chance = {
        (a, b): np.full((1, 1, 2), norm.cdf((means[a] - means[b]) / np.sqrt(var[a] + var[b])))
        for i, a in enumerate(names)
        for b in names[i + 1 :]
    }
    truth = tournament.tournament(names, chance).strength
    for _ in range(repetitions):
        shared, rewards = rng.normal(0, 1, prompts), {}
        for name, mean in means.items():
            fixed = name == "reference"
            taste = 0 if fixed else rng.normal(0, 0.3, prompts) + rng.normal(0, seed_sd, (seeds, 1))
            rewards[name] = (mean + shared + taste + rng.normal(0, 1, (1 if fixed else seeds, prompts)))[:, :, None]
        fitted = tournament.tournament(names, tournament.round_robin(rewards))
        for name in names[1:]:
            yield "strength", fitted.strength[name].low, fitted.strength[name].high, truth[name].value
        for pair, share in chance.items():
            yield "observed share", fitted.observed[pair].low, fitted.observed[pair].high, float(share.mean())
        yield "misfit, p < 0.05", *_rejected(fitted.misfit or 1.0)


def length_worlds(rng: np.random.Generator, repetitions: int, seeds: int, prompts: int, seed_sd: float) -> Found:
    """Four cells whose answers are longer than the reference's, a judge that likes length, prompts of unequal difficulty."""
    large = np.random.default_rng(1)
    base, near = large.lognormal(3.4, 0.4, 300_000).round(), np.sqrt(0.64 + 0.16 + seed_sd**2)
    true_difference = (base * np.exp(large.normal(0.1, 0.35, base.size))).round() - base
    spread = true_difference.std()
    eta = 0.4 + large.normal(0, near, base.size)
    true_wins = expit(eta + np.tanh(true_difference / spread))
    edges = np.quantile(true_difference, [0.2, 0.4, 0.6, 0.8], method="inverted_cdf")
    fifth = np.searchsorted(edges, true_difference, side="left")
    truth = expit(eta).mean(), true_wins[np.abs(true_difference) <= 0.1 * base].mean()
    for repetition in range(repetitions):
        base, common, wins, differences = rng.lognormal(3.4, 0.4, prompts).round(), rng.normal(0, 0.8, prompts), [], []
        for _ in range(4):
            lengths = (base * np.exp(rng.normal(0.1, 0.35, (seeds, prompts)))).round()
            logit = 0.4 + common + rng.normal(0, seed_sd, (seeds, 1)) + rng.normal(0, 0.4, prompts)
            wins.append(
                (rng.random((seeds, prompts)) < expit(logit + np.tanh((lengths - base) / spread))).astype(float)
            )
            differences.append(lengths - base)
        hard = length.difficulty(wins, differences)[0]
        estimate = length.length_controlled(wins[0], differences[0], hard, resamples=200, seed=repetition)
        yield "length-controlled", estimate.low, estimate.high, truth[0]
        level = length.equal_length(wins[0], differences[0] + base, base).win_rate
        if level is not None:
            yield "equal length", level.low, level.high, truth[1]
        strata = length.by_quintile(wins[0], differences[0])
        for place in (0, 2, 4):
            if len(strata) == 5 and strata[place].win_rate is not None:
                share = strata[place].win_rate
                yield "a fifth", share.low, share.high, true_wins[fifth == place].mean()


def best_worlds(rng: np.random.Generator, repetitions: int, prompts: int, draws: int, k: int) -> Found:
    """Draws around prompts of unequal difficulty."""
    truth = float(np.random.default_rng(0).normal(0, 1, (1_000_000, k)).max(1).mean())
    for _ in range(repetitions):
        values = rng.normal(0, 1, (prompts, draws)) + rng.normal(0, 1, (prompts, 1))
        (estimate,) = best_of(values, [k])
        yield "best of k draws", estimate.low, estimate.high, truth


def trial_worlds(rng: np.random.Generator, repetitions: int, seeds: int, prompts: int, seed_sd: float) -> Found:
    """Four trials, the two best nearly equal."""
    means = np.array([0.5, 0.6, 0.65, 0.64])
    for _ in range(repetitions):
        shared = rng.normal(0, 0.15, 2 * prompts)
        chance = means[:, None, None] + shared + rng.normal(0, seed_sd, (4, seeds, 1))
        wins = (rng.random((4, seeds, 2 * prompts)) < chance).astype(float)
        selection = wins[:, :, :prompts].mean((1, 2))
        (estimate,) = tradeoff.best_trials(list(wins[:, :, prompts:]), selection, [2])
        yield "best of two trials", estimate.low, estimate.high, float(tradeoff.best_weights(selection, 2) @ means)


def agreement_worlds(rng: np.random.Generator, repetitions: int, prompts: int, pairs: int, skill: float) -> Found:
    """A judge right more often on some prompts than on others, else guessing; three categories."""

    def judged(prompts: int) -> tuple[np.ndarray, ...]:
        unit = np.repeat(np.arange(prompts), pairs)
        label = rng.choice(["first", "second", "tie"], unit.size, p=[0.45, 0.45, 0.1])
        guess = rng.choice(["first", "second", "tie"], unit.size, p=[0.55, 0.35, 0.1])
        right = rng.random(unit.size) < expit(skill + rng.normal(0, 0.8, prompts))[unit]
        long = rng.exponential(1, unit.size) + rng.normal(0, 1, prompts)[unit]
        sentence = (rng.random(unit.size) < expit(skill * (long - 1))).astype(float)
        return np.where(right, label, guess), label, long, sentence, unit

    verdict, label, long, sentence, _ = judged(600_000 // pairs)
    truth = (
        agree.agreement(verdict, label).value,
        agree.kappa(verdict, label).value,
        agree.correlation(long, sentence).value,
    )
    for _ in range(repetitions):
        verdict, label, long, sentence, unit = judged(prompts)
        estimates = (
            agree.agreement(verdict, label, unit),
            agree.kappa(verdict, label, unit),
            agree.correlation(long, sentence, unit),
        )
        for name, estimate, true in zip(("agreement", "kappa", "correlation"), estimates, truth, strict=True):
            yield name, estimate.low, estimate.high, true


def paired_worlds(rng: np.random.Generator, repetitions: int, prompts: int, right: float) -> Found:
    """Two equal checkpoints."""
    for repetition in range(repetitions):
        shared = rng.normal(0, 0.8, prompts)
        before, after = (rng.random((2, prompts)) < expit(np.log(right / (1 - right)) + shared)).astype(float)
        graded = rng.beta(0.5, 0.5, prompts) - rng.beta(0.5, 0.5, prompts)
        yield "McNemar, p < 0.05", *_rejected(paired.mcnemar(before, after))
        yield "permutation, p < 0.05", *_rejected(paired.permutation(graded, repetition, resamples=499))


def _rejected(p: float) -> tuple[float, float, float]:
    """A test as an interval around zero width: holds its truth where the test rejects, so that its share is the type-I error."""
    return (0.0, 0.0, 0.0) if p < 0.05 else (0.0, 0.0, 1.0)


def shares(worlds: Found) -> dict[str, tuple[float, float, int]]:
    """For each measure the share of intervals that held the truth, their median width, and their number."""
    held: dict[str, list[tuple[bool, float]]] = defaultdict(list)
    for measure, low, high, truth in worlds:
        held[measure].append((low - 1e-12 <= truth <= high + 1e-12, high - low if np.isfinite(high) else np.inf))
    return {
        m: (float(np.mean([h for h, _ in x])), float(np.median([w for _, w in x])), len(x)) for m, x in held.items()
    }


def main(repetitions: int) -> None:
    """Print the table."""
    cells: list[tuple[Callable[..., Found], tuple[float, ...]]] = [
        *(
            (frontier_worlds, cell)
            for cell in ((1, 300, 0.0), (3, 300, 0.0), (3, 300, 0.02), (5, 300, 0.03), (3, 300, 0.05), (2, 300, 0.03))
        ),
        *((frontier_worlds, cell) for cell in ((3, 300, 0.02, True), (5, 300, 0.03, True), (3, 300, 0.05, True))),
        *(
            (ellipse_worlds, cell)
            for cell in ((1, 300, 0.0), (3, 300, 0.02), (5, 300, 0.03), (3, 300, 0.05), (2, 300, 0.03))
        ),
        *((tournament_worlds, cell) for cell in ((1, 300, 0.0), (3, 300, 0.0), (3, 300, 0.05), (5, 100, 0.1))),
        *((tournament_worlds, cell) for cell in ((2, 300, 0.15), (3, 300, 0.15), (3, 1000, 0.15), (5, 300, 0.15))),
        *((length_worlds, cell) for cell in ((1, 300, 0.0), (3, 300, 0.0), (3, 300, 0.1), (3, 300, 0.4))),
        *((best_worlds, cell) for cell in ((100, 8, 4), (300, 16, 16))),
        *((trial_worlds, cell) for cell in ((1, 300, 0.0), (3, 300, 0.02), (5, 300, 0.03))),
        *((agreement_worlds, cell) for cell in ((100, 1, 1.0), (300, 3, 1.0), (800, 1, 0.2), (100, 2, 2.0))),
        *((paired_worlds, cell) for cell in ((200, 0.7), (1000, 0.6))),
    ]
    for worlds, cell in cells:
        for measure, (share, width, count) in shares(worlds(np.random.default_rng(0), repetitions, *cell)).items():
            label = f"{worlds.__name__.removesuffix('_worlds')} {cell}"
            sys.stdout.write(f"| {label} | {measure} | {share:.3f} | {width:.3f} | {count} |\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
