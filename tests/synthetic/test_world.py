"""A whole world, built small: files, determinism, and what was measured compared with the settings."""

import json
import math
import random
import tomllib
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dpobench.artifacts.files import folder_hash, verify
from dpobench.errors import DpobenchError, UnknownName, UserError
from dpobench.synthetic.base import is_held_out
from dpobench.synthetic.construction import Construction
from dpobench.synthetic.embedded import build, location, presets
from dpobench.synthetic.gold import score, score_long
from dpobench.synthetic.grammar import Grammar
from dpobench.synthetic.preferences import Answer, Sampler, label, split_prompts, two_answers
from dpobench.synthetic.settings import Settings

# The tiny preset with fewer pairs: enough to tell a review from noise.
TINY = tomllib.loads(presets()["tiny"].read_text())["world"] | {"pairs": 48, "prompts": 16, "label_noise": 0.25}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return build(TINY, tmp_path_factory.mktemp("cache"))


def rows(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_two_builds_have_the_same_bytes_and_leave_the_callers_generator_alone(world, tmp_path) -> None:
    small = TINY | {"steps": 30, "pairs": 4, "prompts": 2, "reviews": 2}
    torch.manual_seed(5)
    expected = torch.rand(3)
    hashes = []
    for cache in (tmp_path / "a", tmp_path / "b"):
        torch.manual_seed(5)
        built = build(small, cache)
        assert torch.equal(torch.rand(3), expected)
        hashes.append([folder_hash(built, (p,)) for p in ("model/*", "*.jsonl", "tasks/*")])
    assert hashes[0] == hashes[1]
    other = build(small | {"seed": 1}, tmp_path / "a")
    assert folder_hash(other, ("train.jsonl",)) != folder_hash(built, ("train.jsonl",))


def test_a_world_is_found_again_and_never_built_twice(world) -> None:
    before = (world / "world.json").stat().st_mtime_ns
    lines: list[str] = []
    assert build(TINY, world.parent, lines.append) == world
    assert (world / "world.json").stat().st_mtime_ns == before
    assert lines == []
    verify(world)


def test_a_changed_setting_is_another_world(tmp_path) -> None:
    assert location(TINY, tmp_path) == location(dict(reversed(TINY.items())), tmp_path)
    assert location(TINY | {"seed": 1}, tmp_path) != location(TINY, tmp_path)


def test_no_held_out_prompt_is_a_training_prompt(world) -> None:
    training = {row["prompt"][0]["content"] for row in rows(world / "train.jsonl")}
    held_out = {row["prompt"][0]["content"] for row in rows(world / "heldout.jsonl")}
    prompts = [row["prompt"][0]["content"] for row in rows(world / "prompts.jsonl")]
    assert len(training) == TINY["pairs"]
    assert held_out == set(prompts)
    assert len(prompts) == len(held_out) == TINY["prompts"]
    assert not training & held_out
    assert all(map(is_held_out, held_out))
    assert not any(map(is_held_out, training))


def test_more_pairs_than_prompts_repeat_prompts_evenly_and_leak_none() -> None:
    settings = Settings.parse({"pairs": 20_000, "prompts": 1000})
    training, held_out = split_prompts(Grammar(), settings)
    counts = [training.count(prompt) for prompt in random.Random(0).sample(sorted(set(training)), 20)]
    assert len(training) == 20_000
    assert max(counts) - min(counts) <= 1
    assert len(set(held_out)) == 1000
    assert not set(training) & set(held_out)


def test_scores_in_the_file_are_those_of_the_gold_reward(world) -> None:
    for row in rows(world / "train.jsonl") + rows(world / "heldout.jsonl"):
        assert row["chosen"] != row["rejected"]
        for side in ("chosen", "rejected"):
            ((message,)) = row[side]
            assert score(row["prompt"][0]["content"], message["content"])["score"] == row[f"score_{side}"]
    assert not any(row["flipped"] for row in rows(world / "heldout.jsonl"))


def test_the_probability_in_the_file_is_the_sigmoid_of_the_difference_of_scores(world) -> None:
    training = rows(world / "train.jsonl")
    for row in training + rows(world / "heldout.jsonl"):
        # The tiny preset labels at temperature 1 and pays nothing for length.
        expected = 1 / (1 + math.exp(row["score_rejected"] - row["score_chosen"]))
        assert row["win_probability"] == pytest.approx(expected, rel=1e-9)
    below = [row["win_probability"] < 0.5 for row in training]
    assert below == [row["score_chosen"] < row["score_rejected"] for row in training]
    assert any(low and row["flipped"] for low, row in zip(below, training, strict=True))


def test_the_gold_answer_in_the_file_beats_both_answers_and_is_one_the_grammar_can_write(world) -> None:
    grammar = Grammar(Settings.parse(TINY).world)
    for row in rows(world / "train.jsonl") + rows(world / "heldout.jsonl"):
        ((user,), (message,)) = row["prompt"], row["gold"]
        assert message["role"] == "assistant"
        # Three true statements "truly" of level 2: a sentiment of 1.5 x 2, and 0.5 for each of three aspects.
        assert score(user["content"], message["content"])["score"] == 3 + 1.5
        assert max(row["score_chosen"], row["score_rejected"]) <= 4.5
        request = grammar.read_prompt(user["content"])
        assert request is not None
        assert grammar.log_probability(request, message["content"]) > -math.inf


@pytest.mark.parametrize(
    ("statements", "reward", "expected"),
    [(1, score, 3 + 0.5), (2, score, 3 + 1.0), (4, score, 3 + 1.5), (5, score_long, 3 + 2.5), (8, score_long, 3 + 3.0)],
)
def test_the_best_answer_earns_all_that_the_worlds_reward_pays(statements: int, reward, expected: float) -> None:
    work = Construction(Settings.parse(TINY | {"statements": statements}))
    for prompt in work.held_out_prompts:
        assert reward(prompt, work.best_answer(prompt))["score"] == expected


def test_the_best_answer_is_a_function_of_seed_and_prompt_whatever_was_drawn_before() -> None:
    def answers(prompts: list[str], seed: int, pairs: int) -> dict[str, str]:
        work = Construction(Settings.parse({"seed": seed, "pairs": pairs}))
        return {prompt: work.best_answer(prompt) for prompt in prompts}

    prompts = Grammar().review_prompts()[::97]
    first = answers(prompts, 0, 48)
    assert answers(prompts[::-1], 0, 200) == first
    assert answers(prompts, 1, 48) != first
    # Each prompt draws for itself: of 42 answers none of the three openings is absent by chance more often than 1 in 10,000.
    assert len(prompts) == 42
    assert {text.split()[0] for text in first.values()} == {"I", "On", "We"}


def test_the_base_model_is_above_the_floor_and_has_learnt_something(world) -> None:
    measured = json.loads((world / "world.json").read_text())["measured"]
    assert measured["floor"] < measured["held_out_loss"] < measured["floor"] + 6
    # A uniform guess over 200 words would cost 5.3 nats for each of some 30 words.
    assert measured["floor"] > 10
    flipped = [row["flipped"] for row in rows(world / "train.jsonl")]
    assert measured["label_flip_rate"] == sum(flipped) / len(flipped)


def stub_pairs(noise: float, count: int = 4000):
    """Labels of answers whose scores are 2 apart, at temperature 1."""
    settings = Settings.parse({"temperature": 1.0})
    answers = [("good", "bad"), ("bad", "good")] * (count // 2)
    worth = {"good": {"score": 2.0, "words": 1.0}, "bad": {"score": 0.0, "words": 1.0}}
    prompts = [str(i) for i in range(count)]
    return label(prompts, answers, lambda _, text: worth[text], settings, noise=noise, rng=random.Random(1))


def test_the_probability_of_a_label_is_worked_out_by_hand_and_turns_with_the_label() -> None:
    # Two points apart at temperature 1: sigmoid(2) = 0.880797 for the better answer, 0.119203 for the worse.
    for noise in (0.0, 0.3):
        labels = {(pair.answers[0], round(pair.win_probability, 6)) for pair in stub_pairs(noise)}
        assert labels == {("good", 0.880797), ("bad", 0.119203)}


def test_the_probability_counts_the_length_bonus_and_the_temperature() -> None:
    settings = Settings.parse({"length_bonus": 0.5, "temperature": 2.0})
    reward = {"short": {"score": 1.0, "words": 2.0}, "long": {"score": 0.0, "words": 6.0}}
    pairs = label(
        ["p"] * 50, [("short", "long")] * 50, lambda _, t: reward[t], settings, noise=0.0, rng=random.Random(0)
    )
    # Worth 1 + 0.5 x 2 = 2 against 0 + 0.5 x 6 = 3: sigmoid((2 - 3) / 2) = 0.377541 for the short one.
    assert {(pair.answers[0], round(pair.win_probability, 6)) for pair in pairs} == {
        ("short", 0.377541),
        ("long", 0.622459),
    }


def test_a_certain_label_has_a_probability_that_float32_still_tells_from_0_and_1() -> None:
    settings = Settings.parse({"temperature": 1e-6})
    worth = {"good": {"score": 2.0, "words": 1.0}, "bad": {"score": 0.0, "words": 1.0}}
    pairs = label(["p"] * 50, [("good", "bad")] * 50, lambda _, t: worth[t], settings, noise=0.5, rng=random.Random(0))
    low, high = sorted({float(torch.tensor(pair.win_probability)) for pair in pairs})
    assert 0 < low < 1e-7
    assert 1 - 1e-7 < high < 1


@pytest.mark.parametrize("noise", [0.0, 0.15, 0.3])
def test_labels_follow_bradley_terry_and_flip_at_the_asked_rate(noise: float) -> None:
    pairs = stub_pairs(noise)
    n = len(pairs)
    flips = sum(pair.flipped for pair in pairs)
    assert abs(flips - n * noise) <= 4 * math.sqrt(n * noise * (1 - noise))
    right = 1 / (1 + math.exp(-2.0))
    expected = right * (1 - noise) + (1 - right) * noise
    better = sum(pair.scores[0] > pair.scores[1] for pair in pairs)
    assert abs(better - n * expected) <= 4 * math.sqrt(n * expected * (1 - expected))
    assert all((pair.scores[0] > pair.scores[1]) == (pair.answers[0] == "good") for pair in pairs)


def test_the_length_bonus_moves_labels_but_not_scores() -> None:
    long = {"score": 0.0, "words": 40.0}
    short = {"score": 0.0, "words": 10.0}
    settings = Settings.parse({"length_bonus": 1.0, "temperature": 1.0})
    reward = {"long": long, "short": short}
    pairs = label(
        ["p"] * 50, [("short", "long")] * 50, lambda _, t: reward[t], settings, noise=0.0, rng=random.Random(0)
    )
    assert {pair.answers[0] for pair in pairs} == {"long"}
    assert {pair.scores for pair in pairs} == {(0.0, 0.0)}


def test_equal_and_unended_answers_are_drawn_again() -> None:
    drawn = iter([Answer("a", True), Answer("b", False), Answer("a", True), Answer("c", True)])
    assert two_answers(lambda prompts: [next(drawn) for _ in prompts], ["p"]) == [("a", "c")]
    with pytest.raises(DpobenchError, match="one answer only"):
        two_answers(lambda prompts: [Answer("a", True) for _ in prompts], ["p"])
    with pytest.raises(DpobenchError, match="does not end"):
        two_answers(lambda prompts: [Answer("a", False) for _ in prompts], ["p"])


def test_samples_follow_the_models_own_distribution(world) -> None:
    model = AutoModelForCausalLM.from_pretrained(world / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(world / "model")
    prompt = rows(world / "prompts.jsonl")[0]["prompt"]
    ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        first = model(input_ids=ids).logits[0, -1].softmax(-1)
    draws = 1200
    answers = Sampler(model, tokenizer, seed=0, limit=2)([prompt[0]["content"]] * draws)
    for word in ("I", "On", "We"):
        chance = float(first[tokenizer.convert_tokens_to_ids(word)])
        count = sum(answer.text.split()[:1] == [word] for answer in answers)
        assert abs(count - draws * chance) <= 4 * math.sqrt(draws * chance * (1 - chance)) + 1
    assert not any(answer.usable for answer in answers)


def test_unknown_and_impossible_settings_are_refused_by_name() -> None:
    with pytest.raises(UnknownName, match="label_noise"):
        Settings.parse({"label_nois": 0.1})
    for wrong in ({"label_noise": 0.9}, {"pairs": 2.5}, {"hidden": 50}, {"device": "tpu"}, {"places": 99}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            Settings.parse(wrong)


@pytest.mark.parametrize("name", ["tiny", "small", "large"])
def test_every_preset_is_a_world_that_can_be_built(name: str) -> None:
    table = tomllib.loads(presets()[name].read_text())
    settings = Settings.parse(table["world"])
    assert set(table) == {"world", "recipe", "evaluation"}
    assert table["recipe"]["max_tokens"] <= settings.max_tokens
    assert sum(map(is_held_out, Grammar(settings.world).review_prompts())) >= settings.prompts
