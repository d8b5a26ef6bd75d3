"""What a training says that it cost, against counts taken at the models themselves."""

import doctest
import mmap

import pytest
import torch

from dpobench.artifacts.records import Cost
from dpobench.training import cost
from dpobench.training.accelerate import accelerator_for
from dpobench.training.gradient import gradient
from dpobench.training.train import train
from tests.training import tiny

LOSSES = tiny.losses()
CPU = torch.device("cpu")
# One loss of each kind: what it needs, and whether it sees the whole batch.
KINDS = {(LOSSES.get(name).needs, LOSSES.get(name).sees_whole_batch): name for name in LOSSES.names()}


def watched(model, counted):
    """Count the sequences that a model reads, and those whose gradient comes back to its embeddings."""

    def seen(module, inputs, output):
        if inputs[0].shape == (1, 1):  # a head is asked once how it is configured, with a single token
            return
        counted["forward"] += len(inputs[0])
        if output.requires_grad:
            output.register_hook(lambda _: counted.update(backward=counted["backward"] + len(inputs[0])))

    model.get_input_embeddings().register_forward_hook(seen)
    return model


@pytest.mark.parametrize("name", KINDS.values())
def test_passes_are_those_that_the_models_ran(name, drifted, accelerator):
    bound, counted = LOSSES.get(name).bind(), {"forward": 0, "backward": 0}
    model, reference = (watched(tiny.llama(seed=seed), counted) for seed in (0, 5))
    # Embeddings of the models read one row a sequence; a pair has two, and three with its gold answer.
    measured = gradient(model.train(), bound, drifted, accelerator, 150, tiny.auxiliary(bound, reference))
    sides = 3 if "gold" in bound.variant.needs else 2
    crossed = "mismatched" in bound.variant.needs
    of_pairs = counted["forward"] - 2 * len(drifted) * crossed
    assert measured.forwards == of_pairs / sides + len(drifted) * crossed
    assert measured.backwards == counted["backward"] / sides


def test_a_run_reports_its_passes_and_its_memory(start, pairs, tmp_path):
    loss = LOSSES.get("dpo").bind()
    run = tiny.run_of(loss, epochs=1.0)
    trained = train(run, loss, pairs, start, tmp_path, accelerator=accelerator_for("cpu", "float32"))
    assert trained.cost.forwards == trained.cost.backwards == 4 * trained.steps
    assert trained.cost.peak_bytes is None or trained.cost.peak_bytes > 10**7


def test_a_moved_reference_is_one_more_pass(start, pairs, tmp_path):
    """From the step on at which the reference is no longer the start policy: six steps, two of them before."""
    loss = LOSSES.get("dpo").bind()
    run = tiny.run_of(loss, epochs=1.0, reference_every=2)
    trained = train(run, loss, pairs, start, tmp_path, accelerator=accelerator_for("cpu", "float32"))
    assert trained.steps == 6
    assert (trained.cost.forwards, trained.cost.backwards) == (4 * (6 + 4), 4 * 6)


def test_what_was_spent_before_a_kill_counts():
    def spent(forwards, backwards, peak):
        return Cost(forwards=forwards, backwards=backwards, peak_bytes=peak)

    assert cost.with_step(spent(0, 0, None), 8, 4, 70) == spent(8, 4, 70)
    assert cost.with_step(spent(8, 4, 90), 8, 4, 70) == spent(16, 8, 90)
    assert cost.with_step(spent(8, 4, None), 8, 4, None) == spent(16, 8, None)


def test_the_peak_is_that_of_the_work_and_not_of_what_came_before():
    """40 MB that are given back before the measurement do not count, 120 MB within it do."""
    if cost.peak_bytes(CPU) is None:
        pytest.skip("the system reports no peak")

    def touch(megabytes):
        # Pages of their own: what is freed goes back at once, whatever other tests have told the allocator to keep.
        with mmap.mmap(-1, megabytes * 1_000_000) as pages:
            for place in range(0, len(pages), mmap.PAGESIZE):
                pages[place] = 1

    cost.begin(CPU)
    base = cost.peak_bytes(CPU)
    touch(40)
    cost.begin(CPU)
    assert cost.peak_bytes(CPU) < base + 30e6
    touch(120)
    assert cost.peak_bytes(CPU) > base + 100e6


def test_where_the_system_reports_nothing_no_peak_is_made_up(monkeypatch, tmp_path):
    monkeypatch.setattr(cost, "_CLEAR", tmp_path / "absent" / "clear_refs")
    cost.begin(CPU)
    assert cost.peak_bytes(CPU) is None


def test_the_examples_hold():
    assert doctest.testmod(cost) == doctest.TestResults(failed=0, attempted=1)
