"""What studies change: labels, sizes, rounds, and the identity of a run; and what baselines are."""

import math
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from dpobench.artifacts.records import AnswerCounts, Condition
from dpobench.data.perturb import apply_condition, columns_of_the_pair, flipped, flipped_columns, take_subset
from dpobench.data.prompts import Prompt
from dpobench.data.tokens import TokenPair
from dpobench.errors import DpobenchError, UserError
from dpobench.evaluation.settings import Evaluation
from dpobench.evaluation.spec import JudgeSpec
from dpobench.experiment.config import Experiment, parse
from dpobench.experiment.studies import Studies, successor
from dpobench.experiment.validate import validate
from dpobench.losses.pairs import Pairs, Side
from dpobench.losses.registry import LossRegistry, variants
from dpobench.sweep.rounds import Round, check_rounds, on_policy, write_round, write_training_prompts
from dpobench.training.run import HARNESS, Recipe, Run
from tests.training import tiny

PLAIN = {"variant": "dpo", "code": "c", "params": {"beta": 0.1}, "strength": "beta", "unit": "nat", "seed": 0}
RUN = Run(**PLAIN, learning_rate=1e-3, recipe=Recipe(), reference="key")


def turned_ids(share, seed=0, count=90):
    pairs = tiny.rows(count)
    found, told = apply_condition(pairs, Condition(label_noise=share), seed)
    changed = {p.id for p, q in zip(pairs, found, strict=True) if p.chosen is not q.chosen}
    assert told == {"pairs": count, "flipped": len(changed)}
    return changed


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (0.1, 9), (0.3, 27), (0.504, 45), (1.0, 90)])
def test_exactly_the_requested_share_is_flipped(share, count):
    assert len(turned_ids(share)) == count


def test_a_pair_flipped_at_a_small_share_is_flipped_at_every_larger_one():
    found = [turned_ids(share) for share in (0.1, 0.2, 0.3, 0.9)]
    assert all(small < large for small, large in pairwise(found))


def test_seeds_turn_other_pairs_round_and_the_order_of_the_data_does_not_matter():
    assert turned_ids(0.3, seed=0) != turned_ids(0.3, seed=1)
    pairs = tiny.rows(90)
    found, _ = apply_condition(pairs[::-1], Condition(label_noise=0.3), 0)
    assert {p.id for p, q in zip(pairs[::-1], found, strict=True) if p.chosen is not q.chosen} == turned_ids(0.3)


def test_all_that_belongs_to_a_side_goes_with_it_and_twice_is_as_before():
    (pair,) = tiny.rows(1)
    logps = [np.full(len(ids), value, np.float32) for ids, value in ((pair.chosen, -1), (pair.rejected, -2))]
    pair = replace(
        pair, extras={"reference_entropy": (logps[0], logps[1])}, mismatched=TokenPair("m", *[pair.prompt] * 3)
    )
    pair = replace(pair, columns={"score_chosen": 3.0, "score_rejected": 1.0, "win_probability": 0.75, "weight": 2.0})
    pair = pair.with_reference(*logps)
    other = flipped(pair)
    assert (other.chosen is pair.rejected, other.rejected is pair.chosen, other.gold is pair.gold) == (True, True, True)
    assert other.chosen_reference is logps[1]
    assert other.extras["reference_entropy"][0] is logps[1]
    assert other.columns == {"score_chosen": 1.0, "score_rejected": 3.0, "win_probability": 0.25, "weight": 2.0}
    assert flipped(other) == pair


def test_a_column_of_one_side_alone_and_one_of_neither_stay():
    assert flipped_columns({"score_chosen": 3.0, "chosen_length": 1.0, "rejected_length": 2.0}) == {
        "score_chosen": 3.0,
        "chosen_length": 2.0,
        "rejected_length": 1.0,
    }
    assert columns_of_the_pair(["score_chosen", "score_rejected", "win_probability", "confidence"]) == ["confidence"]


def test_a_smaller_training_set_is_a_part_of_a_larger_one_in_the_same_order():
    pairs = tiny.rows(60)
    places = {pair.id: place for place, pair in enumerate(pairs)}
    small, large = ([places[p.id] for p in take_subset(pairs, size, seed=4)] for size in (20, 45))
    assert (len(small), len(large)) == (20, 45)
    assert set(small) < set(large)
    assert small == sorted(small)
    assert small != [places[p.id] for p in take_subset(pairs, 20, seed=5)]
    assert apply_condition(pairs, Condition(train_size=20), 4) == (take_subset(pairs, 20, 4), {"pairs": 20})


def test_what_is_no_change_is_not_trained_twice():
    studies = Studies(label_noise=(0, 0.1), train_size=(50, 60), reference_quality=(1, 0.1))
    assert studies.conditions(60) == [
        Condition(label_noise=0.1),
        Condition(train_size=50),
        Condition(reference_quality=0.1),
    ]
    with pytest.raises(UserError, match="there are 55 training pairs; choose 55 at most"):
        studies.check_size(55)


def test_a_condition_changes_the_id_of_a_run():
    # An id is for good: a new field, or a new version of the harness, is a new run.
    assert RUN.id == "dpo-fb5b0961c865"
    noisy = RUN.model_copy(update={"condition": Condition(label_noise=0.1)})
    assert noisy.id != RUN.id
    changed = {key for key, value in noisy.describe() if value != getattr(RUN.describe(), key)}
    assert changed == {"id", "condition"}
    # A later round is known by the run before it, and by all that decides its pairs.
    second, third = successor(RUN, 2, "k"), successor(successor(RUN, 2, "k"), 3, "k")
    beside = successor(RUN.model_copy(update={"seed": 1}), 2, "k")
    assert len({RUN.id, second.id, third.id, successor(RUN, 2, "other").id, beside.id}) == 5


def test_another_version_of_the_harness_is_another_run():
    newer = RUN.model_copy(update={"harness": HARNESS + 1})
    assert newer.id != RUN.id
    assert (RUN.describe().harness, newer.describe().harness) == (HARNESS, HARNESS + 1)


def test_every_condition_has_the_full_grid_and_all_seeds():
    experiment = parse({"variants": ["dpo"], "grid": {"dpo": {"beta": [0.1, 0.3]}}, "seeds": [0, 1]})
    runs = experiment.runs("key", Condition(label_noise=0.1))
    assert {(run.params["beta"], run.seed) for run in runs} == {(0.1, 0), (0.1, 1), (0.3, 0), (0.3, 1)}
    assert all(run.condition == Condition(label_noise=0.1) for run in runs)


def test_a_moving_reference_must_move_in_the_smallest_training_set_too():
    said = {"variants": ["dpo"], "recipe": {"reference_every": 4, "batch": 8}, "studies": {"train_size": [32]}}
    with pytest.raises(UserError, match=r"no effect in the 4 steps of studies\.train_size = 32"):
        validate(parse(said))


BASELINES = [name for name in variants.names() if variants.get(name).spec.baseline]


def test_a_baseline_is_trained_with_every_comparison_but_the_one_it_is_a_variant_of():
    assert BASELINES
    experiment = Experiment(variants=("dpo", "ipo"))
    assert list(experiment.baseline_names()) == BASELINES
    whole = experiment.with_baselines()
    assert whole.variants == ("dpo", "ipo", *BASELINES)
    assert whole.control == "dpo"
    assert experiment.model_copy(update={"baselines": False}).baseline_names() == ()
    assert Experiment(variants=("dpo", *BASELINES)).baseline_names() == ()
    assert Experiment(variants=("dpo", f"{BASELINES[0]}:0.5")).baseline_names() == ()
    assert list(Experiment(variants=(f"dpo+{BASELINES[0]}",)).baseline_names()) == BASELINES


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_reads_the_chosen_answers_alone(name):
    draw = torch.Generator().manual_seed(0)

    def side():
        return Side(*(-torch.rand(4, 6, generator=draw) for _ in range(2)), torch.ones(4, 6, dtype=torch.bool))

    chosen, bound = side(), variants.get(name).bind()
    torch.testing.assert_close(bound(Pairs(chosen, side())), bound(Pairs(chosen, side())), rtol=0, atol=0)
    rejected = replace(side(), policy=(-torch.rand(4, 6)).requires_grad_())
    policy = chosen.policy.clone().requires_grad_()
    bound(Pairs(replace(chosen, policy=policy), rejected)).mean().backward()
    assert rejected.policy.grad is None or not rejected.policy.grad.any()
    assert policy.grad.abs().sum() > 0


def test_a_baseline_with_a_reference_is_refused(tmp_path):
    from dpobench.testing import check

    file = tmp_path / "wrong.py"
    file.write_text(
        '''"""A baseline that is none."""
import torch.nn.functional as F

from dpobench import Pairs, PerPair, loss


@loss(source="a test", beta_grid=(0.1,), baseline=True)
def wrong(pairs: Pairs, *, beta: float = 0.1) -> PerPair:
    """Reads both sides."""
    return -F.logsigmoid(beta * pairs.margin)
'''
    )
    registry = LossRegistry()
    registry.add_file(file)
    (law,) = (law for law in check(registry.get("wrong")) if not law.passed)
    assert "a baseline learns from the chosen answers alone" in law.reason


def asked(answers):
    """Prompts, and the drawn answers to them: token ids are 3 for each letter, then the end token."""
    prompts = [Prompt(name, ({"role": "user", "content": name},), (5, 6)) for name in answers]
    drawn = [
        {"prompt": name, "draw": draw, "text": text, "token_ids": [*map(ord, text), tiny.END]}
        for name, texts in answers.items()
        for draw, text in enumerate(texts)
    ]
    return prompts, pd.DataFrame(drawn)


def judge(function, *, pointwise):
    plugin = SimpleNamespace(name="a judge", function=function, spec=JudgeSpec(pointwise=pointwise))
    return SimpleNamespace(judge=(plugin, {"scale": 2.0}))


def score(prompts, texts, *, scale):
    """As many points as a text has letters; nothing is said of one with a question mark."""
    return pd.DataFrame({"score": [math.nan if "?" in text else scale * len(text) for text in texts]})


def ids(text):
    return [*map(ord, text), tiny.END]


def test_the_best_of_a_policys_answers_is_chosen_and_the_worst_rejected():
    answers = {"a": ["xx", "x", "xxx"], "same": ["y", "y", "y"], "tie": ["p", "q", "p"], "silent": ["x", "?", "??"]}
    found, counts = on_policy(*asked(answers), judge(score, pointwise=True), 64)
    assert list(found) == ["a"]
    assert found["a"].chosen.tolist() == ids("xxx")
    assert found["a"].rejected.tolist() == ids("x")
    assert found["a"].columns == {"score_chosen": 6.0, "score_rejected": 2.0}
    assert counts == AnswerCounts(prompts=4, equal=1, ties=1, no_verdict=1, pairs=1)


def test_what_is_alike_once_cut_is_no_pair():
    # Prompts have two tokens: of five, three are left for an answer.
    found, counts = on_policy(*asked({"a": ["xyz", "xyzz"], "b": ["z", "yyyy"]}), judge(score, pointwise=True), 5)
    assert counts.equal == 1
    assert found["b"].chosen.tolist() == ids("yyyy")[:3]


def test_a_judge_that_prefers_a_place_has_no_say_and_one_that_prefers_an_answer_has():
    def by_place(prompts, first, second, *, scale):
        return pd.DataFrame({"p_first": [1.0] * len(first)})

    def by_length(prompts, first, second, *, scale):
        chance = [0.9 if len(a) > len(b) else 0.1 for a, b in zip(first, second, strict=True)]
        return pd.DataFrame({"p_first": chance})

    answers = {"a": ["x", "xx"], "b": ["yyy", "y"]}
    found, counts = on_policy(*asked(answers), judge(by_place, pointwise=False), 64)
    assert (found, counts.ties) == ({}, 2)
    found, _ = on_policy(*asked(answers), judge(by_length, pointwise=False), 64)
    assert [found[name].chosen.tolist() for name in "ab"] == [ids("xx"), ids("yyy")]
    assert [found[name].columns["win_probability"] for name in "ab"] == pytest.approx([0.9, 0.9])


def test_a_loss_that_reads_what_a_ranking_does_not_give_is_refused_before_the_first_round():
    losses = [variants.get("sppo_soft")]
    with pytest.raises(UserError, match="sppo_soft reads the column 'win_probability'"):
        check_rounds(Studies(rounds=2), judge(score, pointwise=True), losses)
    check_rounds(Studies(rounds=2), judge(score, pointwise=False), losses)
    with pytest.raises(UserError, match="compares two answers"):
        check_rounds(Studies(rounds=2, answers=3), judge(score, pointwise=False), [])


def test_too_few_pairs_for_a_batch_are_counted_by_their_reasons(tmp_path):
    start = tmp_path / "start"
    tiny.llama().save_pretrained(start)
    tiny.words().save_pretrained(start)
    prompts, _ = asked({"a": [], "b": [], "c": []})
    train = [replace(row, prompt=np.array([5, 6], np.int64)) for row in tiny.rows(4)]
    inputs = SimpleNamespace(training_prompts=prompts, train=train)
    folder = write_training_prompts(inputs, tmp_path / "training")
    whole = Round(2, start, folder, 2, Evaluation(max_new_tokens=4), Recipe(batch=8), 0, "cpu")

    def alike(prompts, texts, *, scale):
        return pd.DataFrame({"score": [1.0] * len(texts)})

    said = r"round 2: .* to 3 training prompts gave 0 pairs, fewer than recipe\.batch = 8: .* ties, 0 without a verdict; raise"
    with pytest.raises(DpobenchError, match=said):
        write_round(tmp_path / "made", whole, judge(alike, pointwise=True))
    assert not (tmp_path / "made").exists()
