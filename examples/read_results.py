"""Results in pandas: which loss wins at the same distance from the reference, from an experiment folder alone.

    python examples/read_results.py results/own_loss

No model is loaded and nothing is computed again: the folder holds every score, one row per prompt and draw.
"""

import sys

import dpobench


def main(folder: str) -> None:
    """Print the leaderboard, the trade-off of every configuration, and the prompts on which the best variant loses most."""
    results = dpobench.load(folder)
    print(results.leaderboard.to_string(index=False))

    # A row per run, metric, group, prompt and draw. The empty condition is the main experiment. Of several
    # opponents only one may be averaged: the reference.
    scores = results.scores.query("split == 'test' and condition == ''")
    against_reference = (scores["metric"] == "win_rate") & (scores["group"] == "reference")
    means = (
        scores[against_reference | (scores["metric"] == "kl")]
        .groupby(["variant", "beta", "metric"])["value"]
        .mean()
        .unstack("metric")
        .sort_values("kl")
    )
    print("\nMean over test prompts and seeds; KL in nats per answer:")
    print(means.round(3).to_string())

    wins = scores[against_reference & (scores["variant"] != "reference")]
    best = wins.groupby("variant")["value"].mean().idxmax()
    by_prompt = wins[wins["variant"] == best].groupby("prompt")["value"].mean().sort_values()
    print(f"\nPrompts on which {best} loses most often to the reference:")
    print(by_prompt.head(5).round(2).to_string())

    # Every hyper-parameter is a column.
    runs = results.runs
    print(f"\n{len(runs)} runs of {runs['variant'].nunique()} variants.")


if __name__ == "__main__":
    main(sys.argv[1])
