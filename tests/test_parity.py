"""The same numbers as TRL's DPOTrainer: loss, gradient and a whole training, on the same weights and batches.

TRL prepares, tokenises, scores the reference and collates by itself; only texts and weights are shared.
"""

import json
import os

import pytest
import torch
from safetensors.torch import load_file

from dpobench.bench.sides import HarnessSide, TrlSide, disagreement
from dpobench.training.accelerate import accelerator_for
from dpobench.training.order import batch_at
from dpobench.training.train import train
from tests.training import tiny

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore::FutureWarning")]
pytest.importorskip("trl")

# Our variant and TRL's name for it; TRL has no conservative DPO.
SAME = {"dpo": ("sigmoid", 0.3), "ipo": ("ipo", 0.5)}
PAIRS, STEPS, BATCH, PEAK = 16, 20, 4, 5e-3


@pytest.fixture(autouse=True)
def same_environment(monkeypatch):
    """TRL and transformers leave settings in the environment."""
    before = dict(os.environ)
    monkeypatch.setenv("TQDM_DISABLE", "1")
    torch.set_num_threads(1)
    yield
    os.environ.clear()
    os.environ.update(before)


def texts(count):
    """Pairs of numbered words; each is one token to both sides."""

    def spelled(ids):
        return " ".join(f"w{i}" for i in ids if i >= 3)

    # TRL joins prompt and answer as text and adds the end token itself.
    return [
        {
            "prompt": spelled(row.prompt) + " ",
            "chosen": "w5 " + spelled(row.chosen),
            "rejected": "w7 " + spelled(row.rejected),
        }
        for row in tiny.rows(count, seed=4)
    ]


def sides(name, folder, accelerator, *, micro_batch, policy, texts, **settings):
    kind, beta = SAME[name]
    fields = {"loss_type": [kind], "beta": beta, **settings}
    reference = tiny.llama()
    trl = TrlSide(policy, reference, texts, folder, micro_batch=micro_batch, **fields)
    pairs = trl.pairs(reference.eval())
    return HarnessSide(policy, pairs, tiny.losses().get(name).bind(beta=beta)), trl


@pytest.fixture
def accelerator():
    return accelerator_for("cpu", "float32")


@pytest.mark.parametrize("micro_batch", [1, 4, PAIRS])
@pytest.mark.parametrize("name", SAME)
def test_loss_and_gradient_are_those_of_trl(name, micro_batch, tmp_path, accelerator):
    ours, trl = sides(
        name, tmp_path, accelerator, micro_batch=micro_batch, policy=tiny.llama(seed=5), texts=texts(PAIRS)
    )
    loss, gradient = disagreement(ours, [trl])
    assert loss <= 5e-6
    assert gradient <= 5e-6


def test_trl_reads_the_texts_as_we_write_them(tmp_path, accelerator):
    """Every word is a token, each answer ends with one end token, and nothing is added to the prompt."""
    _, trl = sides("dpo", tmp_path, accelerator, micro_batch=4, policy=tiny.llama(), texts=texts(4))
    for row, text in zip(trl.rows, texts(4), strict=True):
        assert row["prompt_ids"] == [int(word[1:]) for word in text["prompt"].split()]
        assert row["chosen_ids"] == [*(int(word[1:]) for word in text["chosen"].split()), tiny.END]


@pytest.mark.parametrize("name", SAME)
def test_twenty_steps_end_at_the_weights_of_trl(name, tmp_path, accelerator):
    tiny.llama().save_pretrained(tmp_path / "start")
    tiny.words().save_pretrained(tmp_path / "start")
    run = tiny.run_of(
        tiny.losses().get(name).bind(beta=SAME[name][1]), rate=PEAK, epochs=STEPS * BATCH / PAIRS, batch=BATCH
    )
    recipe, written = run.recipe, texts(PAIRS)
    in_order = [written[i] for step in range(STEPS) for i in batch_at(step, BATCH, PAIRS, run.seed)]
    settings = {"max_steps": STEPS, "train_sampling_strategy": "sequential", "logging_steps": 1, "learning_rate": PEAK}
    _, trl = sides(
        name, tmp_path / "trl", accelerator, micro_batch=BATCH, policy=tiny.llama(), texts=in_order,
        gradient_accumulation_steps=1, **settings,
    )  # fmt: skip
    pairs = trl.pairs(tiny.llama().eval())
    ours = [next(p for p, text in zip(pairs, in_order, strict=True) if text is row) for row in written]
    trainer = trl.trainer
    trainer.optimizer = torch.optim.AdamW(
        trainer.model.parameters(), lr=PEAK, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0
    )
    trainer.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(trainer.optimizer, lambda s: recipe.rate(s, STEPS, 1.0))
    trainer.train()
    trained = train(
        run,
        tiny.losses().get(name).bind(beta=SAME[name][1]),
        ours,
        tmp_path / "start",
        tmp_path,
        accelerator=accelerator,
    )
    assert trained.steps == STEPS == trainer.state.global_step
    before = tiny.llama().state_dict()
    weights, expected = load_file(tmp_path / "checkpoint" / "model.safetensors"), trl.trainer.model.state_dict()
    moved = tiny.flat(expected[key] - before[key] for key in before)
    difference = tiny.flat(weights[key] - expected[key] for key in before)
    assert moved.norm() / tiny.flat(before.values()).norm() > 1e-2
    assert float(difference.norm() / moved.norm()) <= 2e-5
    # A systematic drift would be hidden in the norm of many roundings.
    assert abs(float(difference.mean())) / float(moved.abs().mean()) <= 1e-6
    trl_losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    logged = [json.loads(line)["loss"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert logged == pytest.approx(trl_losses, rel=1e-4, abs=1e-6)
