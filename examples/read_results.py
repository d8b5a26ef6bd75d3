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

    # A row per run, prompt, draw and metric; the empty condition is the main experiment.
    scores = results.scores
    means = (
        scores[scores["metric"].isin(["win_rate", "kl"])]
        .groupby(["variant", "beta", "metric"])["value"]
        .mean()
        .unstack("metric")
        .sort_values("kl")
    )
    print("\nMean over prompts and seeds; KL in nats per answer:")
    print(means.round(3).to_string())

    wins = scores[scores["metric"] == "win_rate"]
    best = wins.groupby("variant")["value"].mean().idxmax()
    by_prompt = wins[wins["variant"] == best].groupby("prompt")["value"].mean().sort_values()
    print(f"\nPrompts on which {best} loses most often to the reference:")
    print(by_prompt.head(5).round(2).to_string())

    # Every hyper-parameter is a column.
    runs = results.runs
    print(f"\n{len(runs)} runs of {runs['variant'].nunique()} variants.")


if __name__ == "__main__":
    main(sys.argv[1])
