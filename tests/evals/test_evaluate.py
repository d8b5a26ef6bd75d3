"""What one process remembers between the checkpoints it scores."""

import random
from pathlib import Path

import pytest

from dpobench.checkpoint import Checkpoint
from dpobench.evaluate import SAMPLES, Plan, once_for
from dpobench.store import write_bytes


@pytest.fixture
def once(tmp_path):
    """What remembers for a reference, a device and a judge; the folder of held-out inputs may be another of equal content."""

    def make(reference="r", device="cpu", judge="j", folder="first"):
        if not (tmp_path / folder / SAMPLES).is_file():
            write_bytes(tmp_path / folder / SAMPLES, b"answers")
        checkpoint = Checkpoint(Path("policy"), Path("reference"), device, reference_hash=reference)
        return once_for(checkpoint, tmp_path / folder, Plan((), (), None, "h", {"judge": judge}))

    return make


def test_what_depends_on_the_inputs_alone_is_computed_once(once):
    assert once()("value", lambda: 1) == 1
    assert once(folder="second")("value", lambda: 2) == 1, "equal content elsewhere"
    assert once()("other", lambda: 3) == 3


@pytest.mark.parametrize("change", [{"reference": "s"}, {"device": "cuda"}, {"judge": "k"}])
def test_another_reference_device_or_judge_is_computed_anew(once, change):
    assert once()("value", lambda: 1) == 1
    assert once(**change)("value", lambda: 2) == 2


def test_other_answers_in_the_same_folder_are_computed_anew(once, tmp_path):
    assert once()("value", lambda: 1) == 1
    write_bytes(tmp_path / "first" / SAMPLES, b"others")
    assert once()("value", lambda: 2) == 2


def test_random_numbers_start_alike_whichever_checkpoint_comes_first(once):
    values = []
    for seed, reference in ((1, "a"), (2, "b")):
        random.seed(seed)
        values.append(once(reference=reference)("value", random.random))
        assert random.random() == random.Random(seed).random(), "the checkpoint's own numbers go on as before"
    assert values[0] == values[1]
