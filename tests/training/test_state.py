"""Checkpoints within a training: they are what the training passed through, and change nothing of where it ends."""

import shutil

import pytest
import torch
from safetensors.torch import load_file

from dpobench.artifacts.scores import spread
from dpobench.losses.registry import variants
from dpobench.models.checkpoint import load_model
from dpobench.training.accelerate import accelerator_for
from dpobench.training.state import Saving
from dpobench.training.train import train
from tests.training import tiny

STEPS = 11


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


def bound():
    return variants.get("dpo").bind(beta=0.2)


def weights(folder):
    return load_file(folder / "checkpoint" / "model.safetensors")


def equal(ours, theirs):
    return set(ours) == set(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)


def trained(folder, start, pairs, accelerator, saving=None, progress=lambda row: None, precision="float32"):
    loss = bound()
    run = tiny.run_of(loss, epochs=2.0, precision=precision)
    train(run, loss, pairs, start, folder, accelerator=accelerator, saving=saving, progress=progress)


@pytest.mark.parametrize(
    ("count", "steps", "expected"),
    [(0, 64, ()), (1, 64, (32,)), (3, 64, (16, 32, 48)), (2, 11, (4, 7)), (5, 3, (1, 2)), (50, 1, ())],
)
def test_checkpoints_are_spread_evenly_and_never_at_the_ends(count, steps, expected):
    assert spread(count, steps) == expected


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_keeping_checkpoints_moves_no_bit_of_the_end(precision, start, pairs, tmp_path):
    accelerator = accelerator_for("cpu", precision)
    saving = Saving(tmp_path / "state", within=(4, 8))
    trained(tmp_path / "plain", start, pairs, accelerator, precision=precision)
    trained(tmp_path / "kept", start, pairs, accelerator, saving, precision=precision)
    accelerator_for("cpu", "float32")
    assert equal(weights(tmp_path / "kept"), weights(tmp_path / "plain"))
    early, late = weights(saving.checkpoints / "4"), weights(saving.checkpoints / "8")
    assert not equal(early, late)
    assert not equal(late, weights(tmp_path / "kept"))


def test_a_checkpoint_is_the_policy_after_so_many_steps(start, pairs, tmp_path, accelerator):
    saving = Saving(tmp_path / "state", every=0, within=(4,))

    def kill(row):
        # The state of step 5, the fifth one counted from 0, is never written: the last one kept is of four steps.
        if row.step == 4:
            raise Killed

    with pytest.raises(Killed):
        trained(tmp_path / "run", start, pairs, accelerator, saving, kill)
    state = load_file(saving.folder / "state.safetensors")
    saved = load_model(saving.checkpoints / "4" / "checkpoint").state_dict()
    passed = {name.removeprefix("weight."): tensor for name, tensor in state.items() if name.startswith("weight.")}
    assert passed
    assert all(torch.equal(saved[name], passed[name]) for name in passed)


def test_after_a_kill_the_same_checkpoints_are_there(start, pairs, tmp_path, accelerator):
    whole, saving = Saving(tmp_path / "whole-state", within=(4, 8)), Saving(tmp_path / "state", 0, (4, 8))
    trained(tmp_path / "whole", start, pairs, accelerator, whole)

    def kill(row):
        if row.step == 6:
            raise Killed

    with pytest.raises(Killed):
        trained(tmp_path / "run", start, pairs, accelerator, saving, kill)
    progress = []
    trained(tmp_path / "run", start, pairs, accelerator, saving, progress.append)
    assert [row.step for row in progress] == list(range(6, STEPS))
    for step in ("4", "8"):
        assert equal(weights(saving.checkpoints / step), weights(whole.checkpoints / step))


def test_a_training_that_went_past_a_requested_checkpoint_starts_over(start, pairs, tmp_path, accelerator):
    saving = Saving(tmp_path / "state", 0, (4,))

    def kill(row):
        if row.step == 6:
            raise Killed

    with pytest.raises(Killed):
        trained(tmp_path / "run", start, pairs, accelerator, saving, kill)
    shutil.rmtree(saving.checkpoints)
    progress = []
    trained(tmp_path / "run", start, pairs, accelerator, saving, progress.append)
    assert [row.step for row in progress] == list(range(STEPS))
    assert (saving.checkpoints / "4" / "checkpoint").is_dir()
