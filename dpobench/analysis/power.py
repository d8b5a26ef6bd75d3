"""What a design can show, before anything is trained."""

import math
from dataclasses import replace
from pathlib import Path

from dpobench.errors import UserError
from dpobench.stats.components import Components
from dpobench.stats.power import power, prompts_needed, seeds_needed, smallest_effect

# Win-rate of the embedded default under its judge, 3 variants, 3 seeds, 264 test prompts: variances of prompts, prompt x
# variant, seed, residual. Prompt x variant came out at nothing there and is set to a twentieth of the prompts'.
TYPICAL = Components(prompts=0.10, method=0.005, seed=0.0005, residual=0.137)
SEEDS, PROMPTS = (2, 3, 5, 10), (100, 250, 500, 1000, 2000)


def lines(
    *,
    seeds: int = 3,
    prompts: int = 500,
    variants: int = 2,
    effect: float | None = None,
    alpha: float = 0.05,
    source: Path | None = None,
) -> list[str]:
    """Answer for one design, its neighbours and one effect.

    Args:
        seeds: trainings per variant.
        prompts: test prompts, the half of the held-out prompts that is reported.
        variants: compared, the control among them.
        effect: a difference to the control that must not be missed, in the unit of the metric.
        alpha: level of all tests against the control together.
        source: folder of a finished experiment whose variances are taken.

    Returns: lines of text.

    Raises:
        UserError: a number is out of range, or the folder holds nothing to measure spread by.
    """
    _check(seeds, prompts, variants, effect, alpha)
    if source is None:
        parts = TYPICAL
        origin = _origin(parts, "typical of a win-rate on the embedded default; --from FOLDER takes your own")
    else:
        parts, origin = _measured(source)
    compared = variants - 1
    smallest = smallest_effect(parts, seeds, prompts, comparisons=compared, alpha=alpha)
    design = f"{_count(seeds, 'seed')}, {prompts} test prompts, {compared} tested against the control, level {alpha:g}"
    answer = [origin, "", f"{design}: differences from {smallest:.3f} on are shown with a chance of 80 %."]
    if seeds == 1:
        answer.append("One seed: this is a difference of two checkpoints; nothing can be claimed of the methods.")
    if effect is not None:
        answer += ["", *_needs(effect, parts, seeds, prompts, compared, alpha)]
    table = _table(parts, seeds, prompts, compared, alpha)
    return [*answer, "", "Smallest difference shown with a chance of 80 %:", *table]


def _check(seeds: int, prompts: int, variants: int, effect: float | None, alpha: float) -> None:
    if seeds < 1:
        raise UserError(f"--seeds {seeds}: at least 1; 2 or more for a claim about methods")
    if prompts < 2:
        raise UserError(f"--prompts {prompts}: at least 2 test prompts")
    if variants < 2:
        raise UserError(f"--variants {variants}: at least 2, a control and one that is compared with it")
    if not 0 < alpha < 0.5:
        raise UserError(f"--alpha {alpha:g}: a level between 0 and 0.5, usually 0.05")
    if effect is not None and not (effect > 0 and math.isfinite(effect)):
        raise UserError(
            f"--effect {effect:g}: a difference above 0 in the unit of the metric; 3 points of win-rate are 0.03"
        )
    if effect is not None and effect >= 1:
        raise UserError(f"--effect {effect:g}: no two shares differ by that much; 3 points of win-rate are 0.03")


def _measured(folder: Path) -> tuple[Components, str]:
    # Reading an experiment takes pandas and the report; the usual answer needs neither.
    from dpobench.analysis.components import measured
    from dpobench.analysis.findings import read
    from dpobench.analysis.results import load

    f = read(load(folder))
    design = measured(f)
    if design is None:
        raise UserError(
            f"--from {folder}: fewer than two of its variants are scored on the same test prompts, so nothing is known of their "
            "spread; finish it with `dpobench run`, or leave --from out"
        )
    size = f"{_count(design.variants, 'variant')}, {_count(design.seeds, 'seed')}, {design.prompts} test prompts"
    where = f"measured in {folder} on {f.results.label(f.ranking or '')} ({size})"
    parts = design.parts
    if not math.isnan(parts.seed):
        return parts, _origin(parts, where)
    # With one seed prompt x variant and residual are not known apart: half of their sum each is as good a guess as any.
    guessed = replace(parts, method=parts.method / 2, residual=parts.method / 2, seed=TYPICAL.seed)
    return guessed, _origin(
        guessed, f"{where}; it had one seed, so the seeds' spread is the typical one and the residual a guess"
    )


def _origin(parts: Components, where: str) -> str:
    spread = {"prompt x variant": parts.method, "seeds": parts.seed, "single answers": parts.residual}
    return f"Standard deviations, {where}: {', '.join(f'{name} {v**0.5:.3f}' for name, v in spread.items())}."


def _needs(effect: float, parts: Components, seeds: int, prompts: int, compared: int, alpha: float) -> list[str]:
    chance = power(effect, parts, seeds, prompts, comparisons=compared, alpha=alpha)
    answer = [f"A true difference of {effect:g} is shown with a chance of {100 * chance:.0f} %."]
    if chance >= 0.8:
        return answer
    more_seeds = seeds_needed(effect, parts, prompts, comparisons=compared, alpha=alpha)
    more_prompts = prompts_needed(effect, parts, seeds, comparisons=compared, alpha=alpha)
    ways = [f"{more_seeds} seeds"] if more_seeds else []
    ways += [f"{more_prompts} prompts"] if more_prompts else []
    if ways:
        answer.append(f"For 80 %: {' or '.join(ways)} in place of {_count(seeds, 'seed')} and {prompts} prompts.")
    if not more_prompts:
        answer.append(
            f"No number of prompts is enough with {_count(seeds, 'seed')}: the spread between seeds hides it."
        )
    if not more_seeds:
        answer.append(f"No number of seeds up to 64 is enough with {prompts} prompts.")
    return answer


def _table(parts: Components, seeds: int, prompts: int, compared: int, alpha: float) -> list[str]:
    rows, columns = sorted({*SEEDS, seeds}), sorted({*PROMPTS, prompts})
    width = max(7, len(str(columns[-1])) + 2)
    head = "seeds \\ prompts " + "".join(f"{n:>{width}}" for n in columns)
    body = []
    for count in rows:
        cells = [smallest_effect(parts, count, n, comparisons=compared, alpha=alpha) for n in columns]
        body.append(f"{count:>15} " + "".join(f"{cell:>{width}.3f}" for cell in cells))
    return [head, *body]


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
