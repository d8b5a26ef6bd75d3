"""What is computed from the reference and from the other pairs before any training."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from dpobench.artifacts.files import write_json
from dpobench.data.tokens import write_pairs
from dpobench.errors import UserError
from dpobench.experiment.config import Experiment
from dpobench.experiment.validate import validate
from dpobench.losses.quantities import NEEDS
from dpobench.losses.registry import variants
from dpobench.models.logprobs import pair_batch
from dpobench.training.reference import (
    EXTRA,
    PAIRS,
    check_pairs,
    mismatched,
    read_extra,
    reference_quantity,
    score_pairs,
    with_needs,
    with_noise,
    write_extra,
)
from dpobench.training.run import Recipe
from tests.training import tiny


@pytest.fixture(scope="module")
def rows():
    return tiny.rows(12)


def test_no_prompt_meets_an_answer_of_its_own_and_every_answer_is_used_once(rows):
    twins = [replace(rows[0], id="twin"), *rows[:5], replace(rows[0], id="triplet")]
    crossed = mismatched(twins, 1000)
    answers_to = {}
    for row in twins:
        answers_to.setdefault(row.prompt.tobytes(), []).append(row.chosen.tobytes())
    for row, other in zip(twins, crossed, strict=True):
        assert other.prompt is row.prompt
        assert other.chosen.tobytes() not in answers_to[row.prompt.tobytes()]
    assert sorted(other.chosen.tobytes() for other in crossed) == sorted(row.chosen.tobytes() for row in twins)


def test_the_derangement_depends_on_the_pairs_alone(rows):
    first, second = mismatched(rows, 64), mismatched(list(rows), 64)
    assert all(np.array_equal(a.chosen, b.chosen) for a, b in zip(first, second, strict=True))


def test_a_mismatched_answer_is_cut_where_prompt_and_answer_would_be_too_long(rows):
    for other in mismatched(rows, 14):
        assert len(other.prompt) + max(len(other.chosen), len(other.rejected)) <= 14


def test_one_prompt_with_most_of_the_pairs_has_no_derangement(rows):
    assert mismatched([*rows[:2], *(replace(rows[2], id=str(i)) for i in range(4))], 64) == []


def test_what_was_prepared_comes_back(rows, tmp_path):
    model = tiny.llama().eval()
    entropy = reference_quantity(model, NEEDS["reference_entropy"], rows)
    write_extra(tmp_path / EXTRA, entropy)
    again = read_extra(tmp_path / EXTRA, rows)
    crossed = score_pairs(model, mismatched(rows, 64))
    write_pairs(tmp_path / PAIRS, crossed)
    write_json(tmp_path / "note.json", {})
    done = with_needs(rows, {"reference_entropy": tmp_path, "mismatched": tmp_path})
    for row, given, read, other in zip(done, entropy, again, crossed, strict=True):
        for side in (0, 1):
            assert np.array_equal(given[side], read[side])
            assert np.array_equal(row.extras["reference_entropy"][side], given[side])
        assert np.array_equal(row.mismatched.rejected_reference, other.rejected_reference)


def test_reference_entropy_is_a_share_of_the_logarithm_of_the_vocabulary(rows):
    model = tiny.llama().eval()
    entropy = reference_quantity(model, NEEDS["reference_entropy"], rows)
    row = rows[3]
    with torch.no_grad():
        ids = torch.tensor(np.concatenate([row.prompt, row.rejected]))[None]
        table = model(input_ids=ids).logits[0, len(row.prompt) - 1 : -1].double().softmax(-1)
    by_hand = -(table * table.log()).sum(-1) / math.log(tiny.VOCABULARY)
    assert entropy[3][1] == pytest.approx(by_hand.numpy(), abs=1e-6)
    assert all(0 < value < 1 for sides in entropy for side in sides for value in side)


def test_noise_is_a_pure_function_of_seed_step_and_place_and_never_an_end_of_the_interval(rows):
    first, again = with_noise(rows, 3, 5), with_noise(rows, 3, 5)
    others = with_noise(rows, 4, 5), with_noise(rows, 3, 6)
    for side, name in ((0, "chosen"), (1, "rejected")):
        for row, twin, *other_rows in zip(first, again, *others, strict=True):
            noise = row.extras["noise"][side]
            assert noise.shape == getattr(row, name).shape
            assert ((noise > 0) & (noise < 1)).all()
            assert np.array_equal(noise, twin.extras["noise"][side])
            assert not any(np.array_equal(noise, other.extras["noise"][side]) for other in other_rows)


def test_the_gold_answers_are_the_last_rows_of_a_batch(rows):
    batch = pair_batch(rows, gold=True)
    assert len(batch.ids) == 36
    lengths = batch.mask.sum(-1).tolist()
    assert lengths[24:] == [len(row.gold) for row in rows]


def test_a_column_that_all_pairs_lack_is_to_be_named(rows):
    bare = [replace(row, columns={}) for row in rows]
    with pytest.raises(UserError, match=r"12 of 12 training pairs have no number 'win_probability'; name the column"):
        check_pairs([variants.get("sppo_soft")], bare)
    check_pairs([variants.get("sppo_soft")], rows)


def test_a_column_that_some_pairs_lack_is_to_be_mended_there(rows):
    bare = [replace(rows[0], columns={}), *rows[1:]]
    with pytest.raises(
        UserError, match=r"1 of 12 training pairs have no number 'win_probability' \(first pair-0\); mend"
    ):
        check_pairs([variants.get("sppo_soft")], bare)


def test_a_column_outside_its_interval_is_refused_with_the_value_and_the_pair(rows):
    wrong = [*rows[1:], replace(rows[0], columns={"win_probability": 1.5})]
    with pytest.raises(UserError, match=r"'win_probability' in \[0, 1\], but 1 of 12 .* \(1.5 in pair pair-0\)"):
        check_pairs([variants.get("sppo_soft")], wrong)


def test_all_that_is_missing_is_listed_at_once(rows):
    bare = [replace(row, columns={}, gold=None) for row in rows]
    with pytest.raises(UserError, match=r"tpo needs a gold answer, but 12 of 12 .*; odpo reads .*; sppo_soft reads"):
        check_pairs([variants.get(name) for name in ("tpo", "odpo", "sppo_soft")], bare)


def test_a_loss_that_needs_other_prompts_is_refused_where_there_are_none(rows):
    with pytest.raises(UserError, match="more than half the training pairs"):
        check_pairs([variants.get("kto")], [replace(rows[0], id=str(i)) for i in range(6)])


@pytest.mark.parametrize(
    ("names", "recipe", "words"),
    [
        (("dpo",), Recipe(reference_mix=0.5), "has no effect while the reference stays"),
        (("simpo", "orpo"), Recipe(reference_every=4), "none of the variants has a reference"),
    ],
)
def test_a_moving_reference_without_effect_is_a_mistake(names, recipe, words):
    with pytest.raises(UserError, match=words):
        validate(Experiment(variants=names, recipe=recipe))
    validate(Experiment(variants=("dpo", "simpo"), recipe=Recipe(reference_every=4, reference_mix=0.5)))
