"""What a training carries besides the policy: running statistics, noise, a live reference, a reference that moves."""

import json
import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from dpobench.training.gradient import gradient
from dpobench.training.reference import move
from dpobench.training.state import Saving
from dpobench.training.train import start_state, train
from tests.training import tiny

LOSSES = tiny.losses()
CLOCK = ("seconds", "tokens_per_s")
KEEPING = [name for name in LOSSES.names() if LOSSES.get(name).keeps_statistics]
MOVING = {"reference_every": 3, "reference_mix": 0.4}


class Killed(BaseException):
    """Stands for a process that ends at once."""


def log_of(folder):
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in CLOCK} for row in rows]


def killed_and_resumed(run, bound, pairs, start, folder, accelerator, at):
    saving = Saving(folder / "state", every=0)

    def kill(row):
        if row.step == at:
            raise Killed

    with pytest.raises(Killed):
        train(run, bound, pairs, start, folder, accelerator=accelerator, saving=saving, progress=kill)
    rows = []
    train(run, bound, pairs, start, folder, accelerator=accelerator, saving=saving, progress=rows.append)
    assert rows[0].step == at


@pytest.mark.parametrize(
    ("name", "recipe"),
    [*((name, {}) for name in KEEPING), ("sampo", {}), ("tdpo2", {}), ("dpo", MOVING), ("kto", MOVING)],
)
def test_a_run_with_more_than_a_policy_resumes_to_the_same_bits(name, recipe, start, pairs, tmp_path, accelerator):
    bound = LOSSES.get(name).bind()
    run = tiny.run_of(bound, epochs=2.0, **recipe)
    for folder in ("whole", "parts"):
        (tmp_path / folder).mkdir()
    train(run, bound, pairs, start, tmp_path / "whole", accelerator=accelerator)
    killed_and_resumed(run, bound, pairs, start, tmp_path / "parts", accelerator, at=7)
    assert log_of(tmp_path / "parts") == log_of(tmp_path / "whole")
    ours, whole = (load_file(tmp_path / each / "checkpoint" / "model.safetensors") for each in ("parts", "whole"))
    assert all(torch.equal(ours[key], whole[key]) for key in whole)


@pytest.mark.parametrize("name", KEEPING)
def test_statistics_stand_in_the_log_and_move(name, start, pairs, tmp_path, accelerator):
    bound = LOSSES.get(name).bind()
    train(tiny.run_of(bound), bound, pairs, start, tmp_path, accelerator=accelerator)
    log = log_of(tmp_path)
    for key in bound.initial():
        assert len({row[f"statistic_{key}"] for row in log}) > 1, key


def test_a_copied_reference_makes_the_next_loss_log_two_and_the_log_still_measures_from_the_start(
    start, pairs, tmp_path, accelerator
):
    bound = LOSSES.get("dpo").bind(beta=0.2)
    run = tiny.run_of(bound, epochs=2.0, reference_every=4, reference_mix=1.0)
    train(run, bound, pairs, start, tmp_path, accelerator=accelerator)
    for row in log_of(tmp_path):
        assert (row["loss"] == pytest.approx(math.log(2), abs=1e-7)) == (row["step"] % 4 == 0)
        assert (abs(row["margin"]) > 1e-3) == (row["step"] > 0)


def test_a_reference_that_does_not_move_is_the_cached_one(start, pairs, tmp_path, accelerator):
    bound, logs = LOSSES.get("dpo").bind(beta=0.2), []
    for name, recipe in (("still", {}), ("late", {"reference_every": 100})):
        (tmp_path / name).mkdir()
        train(tiny.run_of(bound, **recipe), bound, pairs, start, tmp_path / name, accelerator=accelerator)
        logs.append(log_of(tmp_path / name))
    for still, late in zip(*logs, strict=True):
        # Margins are summed in another order, which can turn a tie at the very start.
        names = still.keys() - {"ties", "accuracy"}
        assert {key: late[key] for key in names} == pytest.approx(
            {key: still[key] for key in names}, rel=1e-5, abs=1e-5
        )


def test_a_moved_reference_is_the_weighted_mean_of_both():
    reference, policy, before = tiny.llama(), tiny.llama(seed=1), tiny.llama()
    move(reference, policy, 0.25)
    for name, weight in reference.named_parameters():
        wanted = 0.75 * before.get_parameter(name) + 0.25 * policy.get_parameter(name)
        assert torch.allclose(weight, wanted, atol=1e-6), name
    assert torch.equal(policy.lm_head.weight, tiny.llama(seed=1).lm_head.weight)


def test_noise_is_that_of_seed_and_step(start, pairs, tmp_path, accelerator):
    bound = LOSSES.get("sampo").bind()
    logs = []
    for name, seed in (("first", 0), ("again", 0), ("other", 1)):
        (tmp_path / name).mkdir()
        train(tiny.run_of(bound, seed=seed), bound, pairs, start, tmp_path / name, accelerator=accelerator)
        logs.append(log_of(tmp_path / name))
    assert logs[0] == logs[1]
    assert logs[0] != logs[2]


def test_the_live_reference_is_not_trained(start, pairs, accelerator):
    bound = LOSSES.get("tdpo1").bind()
    run = tiny.run_of(bound)
    state = start_state(run, bound, pairs, start, accelerator)
    reference = state.live_reference
    trained = {id(weight) for group in state.optimizer.param_groups for weight in group["params"]}
    assert not trained & {id(weight) for weight in reference.parameters()}
    for step in range(2):
        auxiliary = replace(state.auxiliary, reference_is_policy=step == 0)
        measured = gradient(state.model, bound, pairs[:4], accelerator, 10_000, auxiliary)
        state.optimizer.param_groups[0]["lr"] = 1e-2
        state.optimizer.step()
        assert torch.isfinite(measured.per_pair["loss"]).all()
    assert all(weight.grad is None for weight in reference.parameters())
    fresh = tiny.llama().state_dict()
    assert all(torch.equal(value, fresh[name]) for name, value in reference.state_dict().items())
    assert not torch.equal(state.model.lm_head.weight, fresh["lm_head.weight"])
