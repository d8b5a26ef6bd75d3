"""Components of the error of a difference, and the designs that would lessen it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dpobench.stats.crossed import Array


@dataclass(frozen=True)
class Components:
    """Variances of one score, in the unit of the metric squared.

    Args:
        prompts: between prompts, alike for all variants; a comparison on the same prompts is free of it.
        method: of the interaction of prompt and variant.
        seed: between trainings of one variant; NaN where every variant had one seed.
        residual: of one answer to one prompt; with one seed it cannot be separated from `method`: it is 0, and `method` holds both.
    """

    prompts: float
    method: float
    seed: float
    residual: float

    def parts(self, seeds: int, prompts: int, draws: float = 1.0) -> dict[str, float]:
        """Contribution of each source to the squared standard error of a difference of two variants.

        Args:
            seeds: trainings of each variant; with one the seeds' part is 0, for the difference is that of two checkpoints.
            prompts: shared by both.
            draws: answers per prompt, in units of what was measured; taken to lessen the residual in full, which is the best case.
        """
        seed = 0.0 if seeds < 2 or math.isnan(self.seed) else 2 * self.seed / seeds
        return {
            "prompt x variant": 2 * self.method / prompts,
            "seed": seed,
            "residual": 2 * self.residual / (seeds * prompts * draws),
        }

    def se(self, seeds: int, prompts: int, draws: float = 1.0) -> float:
        """Standard error of a difference of two variants; arguments as of `parts`."""
        return math.sqrt(sum(self.parts(seeds, prompts, draws).values()))


def components(scores: Sequence[Array]) -> Components:
    """Estimate the variances by the method of moments; none is taken below zero.

    Args:
        scores: one array [S, N] per variant, the same prompts in the same columns, two variants and two prompts at least.

    Raises:
        ValueError: there are fewer than two variants or prompts.

    References: Searle, Casella, McCulloch 1992, Variance Components, ch. 4.
    """
    if len(scores) < 2 or scores[0].shape[1] < 2:
        raise ValueError("components need at least two variants and two prompts")
    several = [np.asarray(x, dtype=np.float64) for x in scores if len(x) > 1]
    rest = [x - x.mean(0) - x.mean(1, keepdims=True) + x.mean() for x in several]
    freedom = sum((len(x) - 1) * (x.shape[1] - 1) for x in several)
    residual = sum(float((r**2).sum()) for r in rest) / freedom if freedom else 0.0
    means = np.stack([np.asarray(x).mean(0) for x in scores])
    count, prompts = means.shape
    # One answer's variance over the seeds of an arm, averaged over scores.
    within = residual * float(np.mean([1 / len(x) for x in scores]))
    both = means - means.mean(0) - means.mean(1, keepdims=True) + means.mean()
    interaction = float((both**2).sum()) / ((count - 1) * (prompts - 1))
    shared = float(means.mean(0).var(ddof=1)) - interaction / count
    spread = [float(x.mean(1).var(ddof=1)) for x in several]
    weights = [len(x) - 1 for x in several]
    seed = float(np.average(spread, weights=weights)) - residual / prompts if several else math.nan
    return Components(max(shared, 0.0), max(interaction - within, 0.0), max(seed, 0.0) if several else seed, residual)


@dataclass(frozen=True)
class Alternative:
    """Another design and what it would give.

    Args:
        change: in words.
        seeds: trainings per variant.
        prompts: test prompts.
        draws: answers per prompt, in units of what was measured.
        se: predicted standard error of a difference.
        trainings: of each variant, in units of the present number.
        answers: sampled and judged per variant, in units of the present number.
    """

    change: str
    seeds: int
    prompts: int
    draws: int
    se: float
    trainings: float
    answers: float


def alternatives(variances: Components, seeds: int, prompts: int) -> list[Alternative]:
    """The present design, and each of seeds, prompts and draws alone doubled and fourfold.

    Args:
        variances: as estimated by `components`.
        seeds: of the present design.
        prompts: of the present design.
    """
    made = [("as it is", seeds, prompts, 1)]
    for factor, word in ((2, "twice"), (4, "four times")):
        made.append((f"{word} the prompts", seeds, factor * prompts, 1))
        if seeds > 1 and not math.isnan(variances.seed):
            made.append((f"{word} the answers per prompt", seeds, prompts, factor))
            made.append((f"{word} the seeds", factor * seeds, prompts, 1))
    return [
        Alternative(change, s, n, d, variances.se(s, n, d), s / seeds, s * n * d / (seeds * prompts))
        for change, s, n, d in made
    ]


def to_halve(variances: Components, seeds: int, prompts: int) -> dict[str, int | None]:
    """How many of each, alone, would halve the standard error of a difference; None where no number would.

    Args:
        variances: as estimated by `components`.
        seeds: of the present design.
        prompts: of the present design.
    """
    goal, parts = variances.se(seeds, prompts) ** 2 / 4, variances.parts(seeds, prompts)
    seed, method, residual = parts["seed"], parts["prompt x variant"], parts["residual"]
    # Each way shrinks some parts by its factor and leaves the others: what is left must be below the goal.
    ways = {"prompts": (prompts, method + residual, seed)}
    # With one seed the residual is not known separately, and so is the effect of further answers or seeds.
    if seeds > 1:
        ways |= {"answers per prompt": (1, residual, method + seed), "seeds": (seeds, seed + residual, method)}
    return {
        name: math.ceil(now * shrinks / (goal - stays) - 1e-9) if goal > stays and shrinks > 0 else None
        for name, (now, shrinks, stays) in ways.items()
    }


def advice(variances: Components, seeds: int, prompts: int) -> str:
    """In words: the parts of the error, and the change of the design that halves it with the least new training.

    Args:
        variances: as estimated by `components`.
        seeds: of the present design.
        prompts: of the present design.
    """
    parts = variances.parts(seeds, prompts)
    total = sum(parts.values())
    if total == 0:
        return "All variants scored alike on every prompt: there is no error to lessen."
    names = {"prompt x variant": "the prompts", "seed": "the seeds", "residual": "single answers"}
    if seeds < 2:
        names["prompt x variant"] = "the prompts and their answers"
    made = ", ".join(
        f"{100 * part / total:.0f} % from {names[name]}" for name, part in sorted(parts.items(), key=lambda x: -x[1]) if part
    )  # fmt: skip
    text = f"Of the squared error of a difference, {made}. "
    if seeds < 2:
        text += "With one seed per variant the spread between trainings is unknown: a second seed comes before anything else. "
    known = to_halve(variances, seeds, prompts)
    ways = {name: number for name, number in known.items() if number is not None}
    now = {"prompts": prompts, "answers per prompt": 1, "seeds": seeds}
    # Prompts and answers cost sampling only; trainings are dearer.
    order = [name for name in ("prompts", "answers per prompt", "seeds") if name in ways]
    if not order:
        return text + "None of seeds, prompts and answers per prompt alone halves the error: more of several is needed."
    cheap = min((n for n in order if n != "seeds"), key=lambda n: ways[n] / now[n], default="seeds")
    text += f"The cheapest way to halve the error: {ways[cheap]} {cheap} in place of {now[cheap]}."
    without = [name for name in ("prompts", "answers per prompt", "seeds") if name in known and name not in ways]
    return text + (f" No number of {' or of '.join(without)} alone would do it." if without else "")
