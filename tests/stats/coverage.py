"""Coverage, type-I and family-wise errors over the whole grid of designs, as Markdown: `python -m tests.stats.coverage`.

At R repetitions a share of 0.95 has a standard error of 100 sqrt(0.95 x 0.05 / R) %: 0.35 for 4000, 0.49 for 2000. Widths are half
widths, of normal scores in true standard errors, of shares in points; 1.96 is what nobody can go below.
"""

import sys
from collections import defaultdict
from functools import partial
from itertools import product

import numpy as np

from dpobench.stats.crossed import crossed_mean, crossed_ratio
from tests.stats.simulate import Design, Verdicts, error_rates, verdict_errors

SEEDS, PROMPTS = (1, 2, 3, 5), (64, 200, 500, 2000)
SEED_SD, METHOD_SD, VARIANTS = (0.0, 0.01, 0.02, 0.05), (0.05, 0.1, 0.2, 0.3), (2, 3, 5)
SHARES = {False: (0.5, 0.8, 0.95), True: (0.5, 0.9)}


def normal(repetitions):
    """Per number of seeds: every rate over all prompts, seed and method spreads."""
    rates_of = defaultdict(list)
    for seeds, prompts, method in product(SEEDS, PROMPTS, METHOD_SD):
        for seed_sd in SEED_SD if seeds > 1 else (0.0,):
            design = Design(seeds, prompts, seed_sd, method)
            rates = error_rates(design, variants=max(VARIANTS), repetitions=repetitions)
            for variants in VARIANTS:
                rates_of[seeds, "family-wise", f"{variants} tested"].append((rates.familywise[variants], design))
            rates_of[seeds, "mean", "coverage"].append((rates.mean_coverage, design))
            rates_of[seeds, "mean", "half width"].append((rates.mean_width, design))
            rates_of[seeds, "difference", "coverage"].append((rates.difference_coverage, design))
            rates_of[seeds, "difference", "half width"].append((rates.difference_width, design))
            rates_of[seeds, "difference", "type I"].append((rates.rejected, design))
            rates_of[seeds, "equivalence at the margin", "type I"].append((rates.equivalent, design))
    return rates_of


def verdicts(repetitions, soft):
    """Per number of seeds and share: coverage and width of shares and of their differences."""
    rates_of = defaultdict(list)
    for seeds, prompts, share in product(SEEDS, (64, 500), SHARES[soft]):
        for seed_sd in (0.0, 0.02, 0.05) if seeds > 1 else (0.0,):
            design = Verdicts(share, seeds, prompts, seed_sd, soft=soft)
            rates = verdict_errors(design, repetitions=repetitions, seed=prompts)
            kind = f"{'soft' if soft else '0, 1/2, 1'}, share {share}"
            rates_of[seeds, f"share ({kind})", "coverage"].append((rates.share_coverage, design))
            rates_of[seeds, f"share ({kind})", "half width"].append((rates.share_width, design))
            rates_of[seeds, f"difference ({kind})", "coverage"].append((rates.difference_coverage, design))
            rates_of[seeds, f"difference ({kind})", "half width"].append((rates.difference_width, design))
            rates_of[seeds, f"difference ({kind})", "type I"].append((rates.rejected, design))
    return rates_of


def table(rates_of):
    """Markdown: least, mean and largest of each rate, and where the extremes are."""
    lines = ["| seeds | what | rate | designs | least | mean | largest | least at | largest at |"]
    lines.append("|---:|---|---|---:|---:|---:|---:|---|---|")
    for (seeds, what, rate), cells in rates_of.items():
        low, high = (chosen(cells, key=lambda cell: cell[0]) for chosen in (min, max))
        factor, unit = (1, "") if rate == "half width" else (100, " %")
        mean = sum(value for value, _ in cells) / len(cells)
        values = [f"{factor * x:.{3 if unit == '' else 1}f}{unit}" for x in (low[0], mean, high[0])]
        lines.append(
            f"| {seeds} | {what} | {rate} | {len(cells)} | {' | '.join(values)} | {where(low[1])} | {where(high[1])} |"
        )
    return lines


def where(design):
    """Prompts, seed spread and, of normal scores, method spread."""
    more = f", method {design.method_sd:g}" if isinstance(design, Design) else ""
    return f"{design.prompts} prompts, seed {design.seed_sd:g}{more}"


def uneven(repetitions):
    """What two or three seeds do where the control's trainings spread more or less than the variants'."""
    rates_of = defaultdict(list)
    for seeds, steadiness in product((2, 3, 5), (0.0, 0.5, 2.0)):
        for prompts, seed_sd in product((200, 2000), (0.02, 0.05)):
            design = Design(seeds, prompts, seed_sd, 0.2, steadiness=steadiness)
            rates = error_rates(design, variants=1, repetitions=repetitions)
            rates_of[seeds, f"difference, the control's seeds spread {steadiness:g} times", "type I"].append(
                (rates.rejected, design)
            )
    return rates_of


def ratios(repetitions):
    """Ratios of lengths over three seeds: skewed values, the truth known."""
    rng, rates = np.random.default_rng(0), defaultdict(list)
    for prompts in (64, 500):
        design, held = Design(3, prompts, 0.0, 0.0), np.zeros(repetitions)
        for place in range(repetitions):
            base = rng.gamma(8.0, 4.0, prompts)
            # Every training makes answers longer by a factor of its own around 1.2.
            lengths = base * rng.normal(1.2, 0.03, (3, 1)) * rng.gamma(6.0, 1 / 6, (3, prompts))
            ratio = crossed_ratio(lengths, base)
            held[place] = ratio.low <= 1.2 <= ratio.high
        rates[3, "crossed_ratio, skewed", "coverage"].append((float(held.mean()), design))
    return rates


def nats(rng, seeds, prompts, log_sd):
    """Distances [S, N] around a true mean of 5: skewed over prompts and answers, each training farther off by a factor of its own."""
    factor = np.exp(rng.normal(0, log_sd, (seeds, 1)) - log_sd**2 / 2)
    return 5 * factor * rng.gamma(2, 0.5, prompts) * rng.gamma(4, 0.25, (seeds, prompts))


def deltas(rng, seeds, seed_sd):
    """Score less the reference's on the documents of three tasks, [S, N] each, true means 0.05, 0 and -0.02: 0.01 over the tasks."""
    luck, arm = rng.normal(0, seed_sd, (seeds, 1)), []
    for documents, delta in ((60, 0.05), (200, 0.0), (500, -0.02)):
        base = (rng.random(documents) < 0.5).astype(float)
        chance = 0.5 + delta + luck + 0.6 * (base - 0.5)
        arm.append((rng.random((seeds, documents)) < chance).astype(float) - base)
    return arm


def others(repetitions):
    """Means of distances, which are skewed, and means over tasks of unequal size."""
    rng, rates = np.random.default_rng(0), defaultdict(list)

    def held(draw, truth):
        ends = [crossed_mean(draw()) for _ in range(repetitions)]
        return float(np.mean([end.low <= truth <= end.high for end in ends]))

    for seeds, prompts, log_sd in product((1, 2, 3, 5), (64, 264), (0.0, 0.1, 0.3)):
        if seeds > 1 or log_sd == 0:
            share = held(lambda s=seeds, n=prompts, sd=log_sd: [nats(rng, s, n, sd)], 5.0)
            rates[seeds, "nats, skewed", "coverage"].append((share, Design(seeds, prompts, log_sd, 0.0)))
    for seeds, seed_sd in product((1, 2, 3, 5), (0.0, 0.01, 0.03)):
        if seeds > 1 or seed_sd == 0:
            share = held(lambda s=seeds, sd=seed_sd: deltas(rng, s, sd), 0.01)
            rates[seeds, "delta over three tasks", "coverage"].append((share, Design(seeds, 760, seed_sd, 0.0)))
    return rates


if __name__ == "__main__":
    quick = "--quick" in sys.argv
    jobs = [partial(normal, 500 if quick else 4000), partial(uneven, 500 if quick else 4000)]
    jobs += [partial(job, 100 if quick else 2000) for job in (ratios, others)]
    jobs += [partial(verdicts, 100 if quick else 2000, soft) for soft in (False, True)]
    for job in jobs:
        sys.stdout.write("\n".join(table(job())) + "\n\n")
        sys.stdout.flush()
