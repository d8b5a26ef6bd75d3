"""Evaluators that keep every law."""

import pandas as pd

from dpobench import Checkpoint, HeldOut, Metric, evaluator, score_rows


@evaluator(
    metrics={"longer": Metric("letters", "none", label="longer than the reference")}, at_reference={"longer": 0.0}
)
def longer(checkpoint: Checkpoint, held_out: HeldOut, *, scale: float = 1.0) -> pd.DataFrame:
    """Letters more than the reference's answer of the same draw has."""
    names = ["prompt", "draw"]
    both = held_out.samples.merge(held_out.reference_samples, on=names, suffixes=("", "_reference"))
    values = scale * (both["text"].str.len() - both["text_reference"].str.len())
    return score_rows(both["prompt"].tolist(), "longer", values, draws=both["draw"].tolist())


@evaluator(
    metrics={"pool_size": Metric("answers", "none", label="further answers")}, needs=("pool",), reference_only=True
)
def pool_size(checkpoint: Checkpoint, held_out: HeldOut) -> pd.DataFrame:
    """Further answers of the reference to each prompt."""
    counts = held_out.pool.groupby("prompt").size()
    return score_rows(list(counts.index), "pool_size", counts.to_numpy())


@evaluator(
    metrics={"words": Metric("words", "none", label="words"), "*": Metric("share", "none", label="share of a letter")}
)
def by_letter(checkpoint: Checkpoint, held_out: HeldOut) -> pd.DataFrame:
    """Words of an answer, and a metric for each letter that occurs."""
    frame, tables = held_out.samples, []
    for name in ["words", *sorted(set("".join(frame["text"])) - {" "})]:
        values = [len(text.split()) if name == "words" else text.count(name) / len(text) for text in frame["text"]]
        tables.append(score_rows(frame["prompt"].tolist(), name, values, draws=frame["draw"].tolist()))
    return pd.concat(tables, ignore_index=True)
