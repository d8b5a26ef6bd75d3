"""The world's tasks, loaded and scored by lm-eval."""

import json
import math
import random

import lm_eval
import pytest
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoTokenizer

from dpobench.synthetic.abilities import DESCRIPTIONS
from dpobench.synthetic.base import Corpus, held_out_losses, is_held_out, new_model, reproducible
from dpobench.synthetic.grammar import TONES, Grammar
from dpobench.synthetic.settings import Settings
from dpobench.synthetic.tasks import write_tasks
from dpobench.synthetic.tokenizer import make_tokenizer

# lm-eval and datasets warn of their own ageing.
pytestmark = pytest.mark.filterwarnings("default")
SETTINGS = Settings.parse({"places": 8, "hidden": 16, "layers": 1, "heads": 2})
GRAMMAR = Grammar(SETTINGS.world)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    rng = random.Random(0)
    prompts = rng.sample([prompt for prompt in GRAMMAR.review_prompts() if is_held_out(prompt)], 16)
    reviews = [(prompt, GRAMMAR.write(GRAMMAR.read_prompt(prompt), rng)) for prompt in prompts]
    write_tasks(folder / "made", GRAMMAR, reviews, prompts, seed=0)
    # A folder that has moved, as one does when it is published.
    return (folder / "made").rename(folder / "tasks"), reviews


@pytest.fixture(scope="module")
def scored(made, tmp_path_factory):
    folder, reviews = made
    tokenizer = make_tokenizer(GRAMMAR, SETTINGS.max_tokens)
    with reproducible(0):
        model = new_model(SETTINGS, tokenizer.get_vocab()).eval()
    corpus = Corpus(GRAMMAR, tokenizer.get_vocab(), 0)
    losses = held_out_losses(model, corpus, reviews, model.device)
    saved = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(saved)
    lm = HFLM(pretrained=model, tokenizer=AutoTokenizer.from_pretrained(saved), batch_size=64, device="cpu")
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    results = lm_eval.simple_evaluate(
        model=lm, tasks=list(DESCRIPTIONS), task_manager=manager, bootstrap_iters=0, log_samples=True
    )
    return results, losses


def documents(folder, name):
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def test_every_task_loads_and_an_untrained_model_is_near_chance(scored) -> None:
    results, _ = scored
    for name, (chance, _) in DESCRIPTIONS.items():
        if chance is not None:
            n = len(results["samples"][name])
            assert n >= 16
            assert abs(results["results"][name]["acc,none"] - chance) <= 5 * math.sqrt(chance * (1 - chance) / n)


def test_the_review_task_is_the_loss_that_training_measured(scored) -> None:
    results, losses = scored
    by_document = {sample["doc_id"]: sample["loss"] for sample in results["samples"]["reviews"]}
    assert [by_document[i] for i in range(len(losses))] == pytest.approx(losses, abs=1e-3)
    floors = [sample["doc"]["floor"] for sample in results["samples"]["reviews"]]
    excess = results["results"]["reviews"]["excess,none"]
    assert excess == pytest.approx(sum(losses) / len(losses) - sum(floors) / len(floors), abs=1e-3)
    assert excess > 0


@pytest.mark.parametrize("name", [name for name, (chance, _) in DESCRIPTIONS.items() if chance is not None])
def test_options_differ_and_their_right_one_stands_anywhere(made, name: str) -> None:
    folder, _ = made
    rows = documents(folder, name)
    size = round(1 / DESCRIPTIONS[name][0])
    for document in rows:
        assert len(set(document["choices"])) == size
        assert 0 <= document["label"] < size
    assert {document["label"] for document in rows} == set(range(size))


def test_the_right_steering_option_has_the_tone_that_was_asked_for(made) -> None:
    folder, _ = made
    for document in documents(folder, "steering"):
        tone = next(tone for tone in TONES if f" {tone} " in document["text"])
        levels = [GRAMMAR.sentiment(GRAMMAR.read(choice)[0]) for choice in document["choices"]]
        assert levels[document["label"]] * TONES[tone][0] > 0
        assert levels[1 - document["label"]] * TONES[tone][0] < 0


def test_one_side_of_a_minimal_pair_can_be_written_and_the_other_cannot(made) -> None:
    folder, _ = made
    for document in documents(folder, "grammar"):
        fine = [bool(s.kind) and GRAMMAR.agrees(s) for s in (GRAMMAR.read(c)[0] for c in document["choices"])]
        assert fine.index(True) == document["label"]
        assert fine.count(True) == 1
