"""Faulty evaluators are refused with the law they break; sound ones are not."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from dpobench.errors import PluginRefused, UserError
from dpobench.evaluation.registry import EvaluatorRegistry, evaluators
from dpobench.testing import check, require
from dpobench.testing.evaluator_laws import LAWS

FOLDER = Path(__file__).parent / "evaluators"
# Function of this name -> the law it breaks, and words of the reason.
FAULTY = {
    "adds_a_column": ("untouched", "changes held_out.samples in place"),
    "changes_the_reference": ("untouched", "changes the weights of the reference"),
    "counts_its_calls": ("deterministic", "two calls on the same inputs differ"),
    "counts_the_place": ("order", "match them by prompt and draw"),
    "draws_are_not_numbered": ("columns", "two rows for one prompt"),
    "expects_a_judge_that_scores": ("needs", "and a judge that compares it raises TypeError"),
    "leaves_the_policy_in_training_mode": ("untouched", "leaves the policy in training mode"),
    "matches_by_place": ("order", "match them by prompt and draw"),
    "names_known_late_and_no_rows": ("metrics", "no row in any situation"),
    "never_produced": ("metrics", "'breadth' is declared and never produced"),
    "never_reads_on_policy_samples": ("needs", "at another temperature it raises ValueError"),
    "not_a_number": ("columns", "a value of length is not finite"),
    "not_the_value_at_the_reference": ("at_reference", "says length = 0, but"),
    "nothing_at_the_reference": ("at_reference", "the reference has no such row"),
    "other_columns": ("columns", "make the table with score_rows"),
    "random_numbers": ("deterministic", "two calls on the same inputs differ"),
    "reads_an_undeclared_judge": ("needs", "declare in needs what it reads"),
    "returns_a_dictionary": ("needs", "returns a dict; return a table made by score_rows"),
    "shifts_the_reference": ("untouched", "changes the chosen_reference of a held-out pair"),
    "the_first_prompt_only": ("order", "other rows come out"),
    "trains_the_policy": ("untouched", "changes the weights of the policy"),
    "undeclared_metric": ("columns", "undeclared metrics"),
    "undocumented": ("declaration", "no docstring"),
    "unknown_at_reference": ("declaration", "'lenght', which is no declared metric"),
    "unknown_direction": ("declaration", "better='up'"),
    "unknown_need": ("declaration", "Did you mean 'judge'"),
    "without_label": ("declaration", "has no label"),
    "without_metrics": ("declaration", "no metric is declared"),
}


def loaded(name, file="faulty"):
    registry = EvaluatorRegistry()
    registry.add_file(FOLDER / f"{file}.py")
    return registry.get(name)


def test_every_law_has_an_evaluator_that_breaks_it_and_every_example_is_tried():
    assert {law for law, _ in FAULTY.values()} == {"declaration", *LAWS}
    assert set(EvaluatorRegistry().add_file(FOLDER / "faulty.py")) == set(FAULTY)


@pytest.mark.parametrize("name", FAULTY)
def test_a_faulty_evaluator_is_refused_with_the_law_it_breaks(name):
    law, words = FAULTY[name]
    with pytest.raises(PluginRefused, match=words) as refusal:
        require(loaded(name))
    assert f"evaluator {name!r} (faulty.py) breaks the law {law!r}: " in str(refusal.value)


@pytest.mark.parametrize("name", EvaluatorRegistry().add_file(FOLDER / "accepted.py"))
def test_a_sound_evaluator_is_accepted(name):
    assert [law for law in check(loaded(name, "accepted")) if not law.passed] == []


@pytest.mark.parametrize("name", evaluators.names())
def test_a_shipped_evaluator_keeps_every_law(name):
    laws = check(evaluators.get(name))
    assert [law.name for law in laws] == ["declaration", *LAWS]
    assert [f"{law.name}: {law.reason}" for law in laws if not law.passed] == []


def test_settings_are_those_given_and_an_unknown_one_is_named():
    assert all(law.passed for law in check(loaded("longer", "accepted"), {"scale": 2.0}))
    with pytest.raises(UserError, match="Did you mean 'scale'"):
        check(loaded("longer", "accepted"), {"scales": 2.0})


def test_the_laws_leave_random_numbers_threads_and_the_cache_as_they_were(monkeypatch):
    monkeypatch.setenv("DPOBENCH_CACHE", "elsewhere")
    torch.manual_seed(3)
    np.random.seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), torch.get_num_threads()
    check(loaded("longer", "accepted"))
    assert torch.equal(before[0], torch.get_rng_state())
    assert (np.random.get_state()[1].tolist(), torch.get_num_threads()) == before[1:]
    assert os.environ["DPOBENCH_CACHE"] == "elsewhere"
