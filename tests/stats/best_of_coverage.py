"""How often the intervals of the controls hold the truth: `python -m tests.stats.best_of_coverage [REPETITIONS]`."""

import sys
from math import comb

import numpy as np

from dpobench.stats.crossed import crossed_mean, share_interval

POOL = 4


def wins(rng, prompts, levels, k):
    """Win-rate of the best of k per prompt, over all subsets of a pool of four, as the evaluator has it; shape [prompts].

    Scores are whole numbers from 0 to `levels` - 1 with chances of each prompt's own, so that few levels tie often.
    """
    chances = rng.dirichlet(np.ones(levels), prompts).cumsum(1)[:, None]
    scores = (rng.random((prompts, POOL + 1, 1)) > chances).sum(-1)
    pool, own = scores[:, :POOL], scores[:, POOL:]
    count = np.array([comb(n, k) for n in range(POOL + 1)])
    return 1 - (count[(pool < own).sum(1)] + count[(pool <= own).sum(1)]) / (2 * count[POOL])


def coverage(prompts, levels, k, repetitions, seed=0):
    """Share of the 95 % intervals that hold the truth, which is read off many prompts."""
    rng = np.random.default_rng([seed, prompts, levels, k])
    truth = wins(rng, 200_000, levels, k).mean() if k > 1 else 0.5
    hits = 0
    for _ in range(repetitions):
        estimate = share_interval(crossed_mean([wins(rng, prompts, levels, k)[None]]))
        hits += estimate.low <= truth <= estimate.high
    return hits / repetitions


def table(repetitions):
    """Lines of a table: number of prompts, levels of the score, k, coverage."""
    for prompts in (50, 200, 800):
        for levels in (3, 30):
            yield prompts, levels, [coverage(prompts, levels, k, repetitions) for k in (1, 2, 4)]


if __name__ == "__main__":
    for prompts, levels, shares in table(int(sys.argv[1]) if len(sys.argv) > 1 else 2000):
        sys.stdout.write(
            f"{prompts:4d} prompts, {levels:4d} levels: " + ", ".join(f"{one:.3f}" for one in shares) + "\n"
        )
