"""A whole training: what it leaves, that it can be repeated and resumed to the bit, and where it stops."""

import json
import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from dpobench.artifacts.files import file_hash
from dpobench.errors import Diverged, DpobenchError, UserError
from dpobench.losses.variant import Variant
from dpobench.models import checkpoint
from dpobench.models.activation_checkpointing import recompute
from dpobench.models.packing import adopt
from dpobench.training.accelerate import accelerator_for, prepared
from dpobench.training.gradient import gradient
from dpobench.training.loss_inputs import AuxiliaryState
from dpobench.training.order import batch_at
from dpobench.training.run import Recipe
from dpobench.training.state import Saving
from dpobench.training.train import train
from tests.training import tiny

LOSSES = tiny.losses()
FIELDS = {
    "step", "loss", "margin", "accuracy", "ties", "reward_chosen", "reward_rejected", "reward_beta", "chosen_logp",
    "rejected_logp", "chosen_logratio", "rejected_logratio", "gradient_norm", "learning_rate", "saturation", "tokens",
    "tokens_per_s", "seconds",
}  # fmt: skip
CLOCK = ("seconds", "tokens_per_s")


def bound(name="dpo", **params):
    return LOSSES.get(name).bind(**params)


def own(function, name="own"):
    """A variant made of a function, declared like DPO."""
    like = LOSSES.get("dpo")
    return Variant("variant", name, function, replace(like.spec, start=None), like.file).bind()


def weights(folder):
    return load_file(folder / "checkpoint" / "model.safetensors")


def log_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def without_clock(log):
    return [{key: value for key, value in row.items() if key not in CLOCK} for row in log]


@pytest.fixture(scope="module")
def trained(start, pairs, tmp_path_factory):
    """A run of DPO of eleven steps, two epochs, and what it left."""
    folder, loss = tmp_path_factory.mktemp("trained"), bound(beta=0.2)
    run = tiny.run_of(loss, epochs=2.0)
    return folder, train(run, loss, pairs, start, folder, accelerator=accelerator_for("cpu", "float32"))


def test_the_log_has_every_field_at_every_step(trained):
    folder, result = trained
    log = log_of(folder)
    assert [row["step"] for row in log] == list(range(11))
    assert all(set(row) == FIELDS for row in log)
    assert all(math.isfinite(value) for row in log for value in row.values())
    assert result.steps == 11
    assert result.tokens == sum(row["tokens"] for row in log)


def test_the_first_row_is_the_reference_itself(trained):
    first = log_of(trained[0])[0]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert first["margin"] == pytest.approx(0, abs=1e-5)
    assert first["learning_rate"] == pytest.approx(1e-2 / 3)  # three of eleven steps rise
    assert trained[1].checks.start_margin < 1e-6
    assert trained[1].checks.reload_max_difference == 0.0


def test_the_loss_falls_and_the_margin_grows(trained):
    log = log_of(trained[0])
    assert log[-1]["loss"] < 0.9 * log[0]["loss"]
    assert log[-1]["margin"] > 1
    assert log[-1]["accuracy"] > 0.7


def test_tokens_are_those_of_both_sides(start, pairs, trained):
    wanted = [sum(pairs[i].size for i in batch_at(step, 4, 22, 0)) for step in range(11)]
    assert [row["tokens"] for row in log_of(trained[0])] == wanted


def test_rewards_are_beta_times_the_log_ratio_where_beta_is_per_nat(trained):
    for row in log_of(trained[0]):
        assert row["reward_beta"] == 0.2
        for side in ("chosen", "rejected"):
            assert row[f"reward_{side}"] == pytest.approx(0.2 * row[f"{side}_logratio"], rel=1e-12)
        assert row["margin"] == pytest.approx(row["chosen_logratio"] - row["rejected_logratio"], abs=1e-5)


def test_rewards_are_the_log_ratio_where_beta_is_something_else(start, pairs, tmp_path, accelerator):
    loss = bound("ipo", beta=0.5)
    train(tiny.run_of(loss), loss, pairs[:8], start, tmp_path, accelerator=accelerator)
    last = log_of(tmp_path)[-1]
    assert last["reward_beta"] == 1.0
    assert last["reward_chosen"] == last["chosen_logratio"] != 0


def test_the_checkpoint_is_an_ordinary_folder_with_moved_weights(start, trained):
    model, tokenizer = checkpoint.load_model(trained[0] / "checkpoint"), checkpoint.load_tokenizer(start)
    assert checkpoint.load_tokenizer(trained[0] / "checkpoint").get_vocab() == tokenizer.get_vocab()
    before = tiny.flat(checkpoint.load_model(start).parameters())
    assert 1e-3 < tiny.apart(tiny.flat(model.parameters()), before) < 1


def test_training_twice_gives_the_same_bits(start, pairs, trained, tmp_path, accelerator):
    loss = bound(beta=0.2)
    train(tiny.run_of(loss, epochs=2.0), loss, pairs, start, tmp_path, accelerator=accelerator)
    assert without_clock(log_of(tmp_path)) == without_clock(log_of(trained[0]))
    assert file_hash(tmp_path / "checkpoint/model.safetensors") == file_hash(
        trained[0] / "checkpoint/model.safetensors"
    )


def test_another_seed_is_another_training(start, pairs, trained, tmp_path, accelerator):
    loss = bound(beta=0.2)
    train(tiny.run_of(loss, epochs=2.0, seed=1), loss, pairs, start, tmp_path, accelerator=accelerator)
    assert log_of(tmp_path)[1]["tokens"] != log_of(trained[0])[1]["tokens"]


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


@pytest.mark.parametrize("killed_at", [0, 4, 9])
def test_a_resumed_run_ends_with_the_same_bits(killed_at, start, pairs, trained, tmp_path, accelerator):
    loss, saving = bound(beta=0.2), Saving(tmp_path / "state", every=0)
    run = tiny.run_of(loss, epochs=2.0)

    def kill(row):
        # The state of the step before has been kept; this step's is lost.
        if row.step == killed_at:
            raise Killed

    with pytest.raises(Killed):
        train(run, loss, pairs, start, tmp_path / "run", accelerator=accelerator, saving=saving, progress=kill)
    assert not (tmp_path / "run" / "checkpoint").exists()
    progress = []
    result = train(
        run, loss, pairs, start, tmp_path / "run", accelerator=accelerator, saving=saving, progress=progress.append
    )
    assert [row.step for row in progress] == list(range(killed_at, 11))
    assert without_clock(log_of(tmp_path / "run")) == without_clock(log_of(trained[0]))
    ours, whole = weights(tmp_path / "run"), weights(trained[0])
    assert all(torch.equal(ours[name], whole[name]) for name in whole)
    assert result.tokens == trained[1].tokens
    assert result.checks == trained[1].checks


def test_a_resumed_run_in_bf16_ends_with_the_same_bits(start, pairs, tmp_path):
    loss = bound(beta=0.2)
    run = tiny.run_of(loss, epochs=2.0, precision="bf16")
    low = accelerator_for("cpu", "bf16")

    def kill(row):
        if row.step == 4:
            raise Killed

    saving = Saving(tmp_path / "state", every=0)
    train(run, loss, pairs, start, tmp_path / "whole", accelerator=low)
    with pytest.raises(Killed):
        train(run, loss, pairs, start, tmp_path / "run", accelerator=low, saving=saving, progress=kill)
    train(run, loss, pairs, start, tmp_path / "run", accelerator=low, saving=saving)
    accelerator_for("cpu", "float32")
    assert without_clock(log_of(tmp_path / "run")) == without_clock(log_of(tmp_path / "whole"))
    ours, whole = weights(tmp_path / "run"), weights(tmp_path / "whole")
    assert all(torch.equal(ours[name], whole[name]) for name in whole)


def test_in_bf16_every_step_reads_the_weights_of_that_step(start, pairs):
    """After a fused step, which raises no version of a weight, a model and a fresh copy of it have one gradient."""
    low = accelerator_for("cpu", "bf16")
    model, optimizer = prepared(checkpoint.load_model(start), low, Recipe())
    optimizer.param_groups[0]["lr"] = 0.05
    gradient(model, bound(), pairs[:4], low, 10_000)
    optimizer.step()
    optimizer.zero_grad()
    fresh = checkpoint.load_model(start)
    fresh.load_state_dict(low.unwrap_model(model).state_dict())
    fresh, _ = prepared(fresh, low, Recipe())
    measured = [gradient(one, bound(), pairs[:4], low, 10_000) for one in (model, fresh)]
    accelerator_for("cpu", "float32")
    assert torch.equal(*(one.per_pair["loss"] for one in measured))
    assert torch.equal(tiny.gradients(model), tiny.gradients(fresh))


def test_a_damaged_state_is_left_alone_and_the_run_starts_over(start, pairs, trained, tmp_path, accelerator):
    loss, saving = bound(beta=0.2), Saving(tmp_path / "state", every=0)
    run = tiny.run_of(loss, epochs=2.0)
    train(run, loss, pairs, start, tmp_path / "run", accelerator=accelerator, saving=saving)
    file = tmp_path / "state" / "state.safetensors"
    content = bytearray(file.read_bytes())
    content[-7] ^= 1
    file.write_bytes(content)
    progress = []
    train(run, loss, pairs, start, tmp_path / "run", accelerator=accelerator, saving=saving, progress=progress.append)
    assert [row.step for row in progress] == list(range(11))
    ours, whole = weights(tmp_path / "run"), weights(trained[0])
    assert all(torch.equal(ours[name], whole[name]) for name in whole)


def stopped(run, loss, pairs, start, folder, accelerator):
    with pytest.raises(Diverged) as caught:
        train(run, loss, pairs, start, folder, accelerator=accelerator)
    assert not (folder / "checkpoint").exists()
    log = log_of(folder)
    assert [row["step"] for row in log] == list(range(caught.value.step + 1))
    assert all(math.isfinite(row["loss"]) and math.isfinite(row["gradient_norm"]) for row in log[:-1])
    return caught.value


@pytest.mark.parametrize("clip", [1.0, 1e30])
def test_a_huge_learning_rate_stops_at_the_step_after_it(clip, start, pairs, tmp_path, accelerator):
    loss = bound()
    # The recipe allows no such rate; the harness must hold all the same.
    run = tiny.run_of(loss, clip=clip, warmup=0.0).model_copy(update={"learning_rate": 1e30})
    error = stopped(run, loss, pairs, start, tmp_path, accelerator)
    assert error.step == 1
    assert str(error) == f"{error.what} is not finite at step 1"


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
@pytest.mark.parametrize("at", [0, 3])
def test_a_loss_that_is_not_finite_stops_at_its_step(wrong, at, start, pairs, tmp_path, accelerator):
    calls = []

    def once(given, *, beta=0.1):
        losses = -nn.functional.logsigmoid(0.1 * given.margin)
        if given.chosen.policy.grad_fn is not None:
            calls.append(1)
            losses = losses * (wrong if len(calls) > at else 1)
        return losses

    run = tiny.run_of(own(once), micro_batch_tokens=10_000)  # one call a step
    error = stopped(run, own(once), pairs, start, tmp_path, accelerator)
    assert (error.step, error.what) == (at, "loss")


def test_a_gradient_that_is_not_finite_stops_though_the_loss_is(start, pairs, tmp_path, accelerator):
    calls = []

    def cliff(given, *, beta=0.1):
        losses = -nn.functional.logsigmoid(beta * given.margin)
        if given.chosen.policy.grad_fn is not None:
            calls.append(1)
            # Adds 0, with an infinite slope.
            losses = losses + ((given.margin * 0).abs().sqrt() if len(calls) > 2 else 0)
        return losses

    run = tiny.run_of(own(cliff), micro_batch_tokens=10_000)
    error = stopped(run, own(cliff), pairs, start, tmp_path, accelerator)
    assert (error.step, error.what) == (2, "gradient")


def test_a_saved_tensor_that_was_altered_is_noticed(tmp_path):
    model, file = tiny.llama(), tmp_path / "model.safetensors"
    assert checkpoint.save(model, tiny.words(), tmp_path) == 0.0
    tensors = load_file(file)
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] += 1.0
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(DpobenchError, match="the saved model differs from the trained one by"):
        checkpoint.compare_with_saved(model, tmp_path)


INNER = {
    "as modules": "transformer.h.0.mlp",
    "in the attention": "model.layers.0.mlp",
    "in the layer itself": "model.decoder.layers.0.fc1",
}


def unsteady(kind, folder):
    from transformers import GPT2Config, GPT2LMHeadModel, OPTConfig, OPTForCausalLM

    if kind == "in the layer itself":
        shape = {"hidden_size": 16, "ffn_dim": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 48}
        ids = {"word_embed_proj_dim": 16, "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
        return OPTForCausalLM(OPTConfig(**shape, **ids, dropout=0.5)).save_pretrained(folder)
    if kind == "in the attention":
        return tiny.llama(attention_dropout=0.5).save_pretrained(folder)
    shape = {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 48, "bos_token_id": 1, "eos_token_id": 1}
    config = GPT2Config(**shape, resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5)
    return GPT2LMHeadModel(config).save_pretrained(folder)


@pytest.mark.parametrize("kind", list(INNER))
@pytest.mark.parametrize("packed", [True, False])
def test_activations_computed_again_change_nothing_and_let_no_dropout_in(kind, packed, tmp_path, accelerator, pairs):
    unsteady(kind, tmp_path)
    gradients, entered = [], []
    for recipe in (Recipe(), Recipe(recompute_activations=True)):
        policy = checkpoint.load_model(tmp_path)
        if packed:
            assert adopt(policy, pairs) is None
        inner = policy.get_submodule(INNER[kind])
        model, _ = prepared(policy, accelerator, recipe)
        inner.register_forward_pre_hook(lambda *_: entered.extend([True] * torch.is_grad_enabled()))
        gradient(model, bound(), pairs[:4], accelerator, 10_000, AuxiliaryState(packed=packed))
        entered.append(None)
        gradients.append(tiny.gradients(model))
    assert torch.equal(*gradients)
    # The layer's inner part was passed once, then twice: the second time in backward.
    assert entered == [True, None, True, True, None]


def test_layers_that_cannot_be_computed_again_are_refused():
    with pytest.raises(UserError, match=r"recompute_activations: the layers of Linear cannot be computed again"):
        recompute(torch.nn.Linear(2, 2))


@pytest.mark.parametrize("kind", list(INNER))
def test_dropout_is_off_during_training(kind, tmp_path, accelerator, pairs):
    unsteady(kind, tmp_path)
    model, _ = prepared(checkpoint.load_model(tmp_path), accelerator, Recipe())
    gradients = []
    for _ in range(2):
        model.zero_grad()
        gradient(model, bound(), pairs[:4], accelerator, 10_000)
        gradients.append(tiny.gradients(model))
    assert gradients[0].any()
    assert torch.equal(*gradients)


def test_bf16_trains_and_stays_near_float32(start, pairs, trained, tmp_path):
    loss = bound(beta=0.2)
    run = tiny.run_of(loss, epochs=2.0, precision="bf16")
    result = train(run, loss, pairs, start, tmp_path, accelerator=accelerator_for("cpu", "bf16"))
    accelerator_for("cpu", "float32")
    log, exact = log_of(tmp_path), log_of(trained[0])
    assert all(weight.dtype == torch.float32 for weight in weights(tmp_path).values())
    assert log[0]["gradient_norm"] == pytest.approx(exact[0]["gradient_norm"], rel=0.02)
    assert log[-1]["loss"] == pytest.approx(exact[-1]["loss"], abs=0.05)
    assert log[-1]["margin"] > 1
    assert result.checks.start_margin < 5e-2
    assert result.layout == "packed"
    assert [row["gradient_norm"] for row in log] != [row["gradient_norm"] for row in exact]


def test_a_batch_larger_than_the_data_is_refused(start, pairs, tmp_path, accelerator):
    with pytest.raises(UserError, match=r"recipe\.batch = 32, but there are 22 training pairs"):
        train(tiny.run_of(bound(), batch=32), bound(), pairs, start, tmp_path, accelerator=accelerator)
