"""Training on labels that were flipped is training on data that say the opposite."""

from dataclasses import replace

import pytest
from safetensors.torch import load_file

from dpobench.artifacts.records import Condition
from dpobench.data.perturb import apply_condition
from dpobench.training.train import train
from tests.training import tiny

LOSSES = tiny.losses()


# A loss of pairs, one that reads columns of both sides, one with completions of other prompts, one with a live reference.
@pytest.mark.parametrize("name", ["dpo", "odpo", "mpo", "tdpo2"])
def test_all_labels_flipped_give_the_weights_of_the_opposite_data(name, start, accelerator, tmp_path):
    bound, rows, reference = LOSSES.get(name).bind(), tiny.rows(16), tiny.llama()
    opposite = [
        replace(
            row,
            chosen=row.rejected,
            rejected=row.chosen,
            columns={
                "score_chosen": row.columns["score_rejected"],
                "score_rejected": row.columns["score_chosen"],
                "win_probability": 1 - row.columns["win_probability"],
            },
        )
        for row in rows
    ]
    turned, told = apply_condition(tiny.scored(rows, reference), Condition(label_noise=1.0), seed=3)
    assert told == {"pairs": 16, "flipped": 16}
    for where, given in (
        ("turned", turned),
        ("opposite", tiny.scored(opposite, reference)),
        ("as before", tiny.scored(rows, reference)),
    ):
        train(tiny.run_of(bound), bound, given, start, tmp_path / where, accelerator=accelerator)
    before, one, two, other = (
        load_file(folder / "model.safetensors")
        for folder in (start, *(tmp_path / where / "checkpoint" for where in ("turned", "opposite", "as before")))
    )
    moved = tiny.flat(two[key] - before[key] for key in two).norm()
    assert float(tiny.flat(one[key] - two[key] for key in two).norm() / moved) <= 1e-5
    assert float(tiny.flat(other[key] - two[key] for key in two).norm() / moved) > 0.1
