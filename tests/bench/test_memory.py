"""Peak memory of a step: what is compared, and that it is the step's own."""

import importlib.util
import mmap

import pytest
import torch

from dpobench.bench import memory
from dpobench.bench.memory import Peak, peak_since_reset, reset_peak, resident_memory
from dpobench.bench.suites import StepSpec
from dpobench.bench.workloads import SMALL, WORKLOADS, Workload, llama
from dpobench.errors import UserError


def test_ratios_are_of_the_step_and_of_the_whole():
    """A step of ours takes 30 MB on 100; TRL's takes 60 on 140 at its best batch and 300 on 100 at 8."""
    assert memory.ratios(Peak(100, 130), {1: Peak(140, 200), 8: Peak(100, 400)}) == {
        "peak_memory_ratio": 0.5,
        "resident_ratio": 0.65,
        "peak_memory_ratio_batch8": 0.1,
        "resident_ratio_batch8": 0.325,
    }


def test_without_trl_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"TRL, which is not installed; pip install 'dpobench\[parity\]'"):
        memory.compare(StepSpec(WORKLOADS[0]))


def test_where_the_peak_cannot_be_reset_nothing_is_measured(tmp_path):
    with pytest.raises(UserError, match="cannot be written"):
        reset_peak("cpu", clear=tmp_path / "absent" / "clear_refs")


def test_memory_given_back_before_the_end_is_in_the_peak():
    megabytes, device = 40, "cpu"
    before = reset_peak(device)
    # By itself: other tests of this process may have made the allocator keep what is freed.
    block = mmap.mmap(-1, megabytes * 10**6)
    for page in range(0, len(block), mmap.PAGESIZE):
        block[page] = 1
    block.close()
    after = resident_memory("VmRSS")
    assert peak_since_reset(device) - before == pytest.approx(megabytes * 1e6, rel=0.05)
    assert after - before < megabytes * 1e5


def test_an_earlier_peak_is_forgotten():
    device = "cpu"
    torch.ones(40 * 250_000)
    before = reset_peak(device)
    assert peak_since_reset(device) - before < 4e6


def test_texts_are_read_as_words_between_which_only_answers_end():
    reference = llama(SMALL)
    (pair,) = memory.read_texts(reference, [{"prompt": "w3 w4 ", "chosen": "w5", "rejected": "w6 w7"}])
    assert [part.tolist() for part in (pair.prompt, pair.chosen, pair.rejected)] == [[3, 4], [5, 1], [6, 7, 1]]
    hidden = torch.tensor([[3, 4, 5]])
    with torch.no_grad():
        logp = reference(input_ids=hidden).logits[0].log_softmax(-1)
    assert pair.chosen_reference.tolist() == pytest.approx([float(logp[1, 5]), float(logp[2, 1])], abs=1e-5)


@pytest.mark.slow
def test_a_step_of_longer_pairs_takes_more_memory():
    """A process of its own each: the pairs' activations are in the peak, weights, moments and gradients before it."""
    short, long = (Workload(f"{times} times", (20 * times, 0.1), (20 * times, 0.1)) for times in (1, 8))
    small, large = (memory.peak(memory.OURS, StepSpec(workload, pairs=4)) for workload in (short, long))
    assert 0 < small.step_mb < large.step_mb / 2
    # The same weights, moments and gradients in both.
    assert small.before_mb == pytest.approx(large.before_mb, rel=0.03)
