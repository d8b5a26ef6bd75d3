"""Faulty losses are refused with the law they break; losses of other papers are not refused."""

from pathlib import Path

import pytest
import torch

from dpobench.errors import PluginRefused, UserError
from dpobench.registry import Registry
from dpobench.testing import check, require
from dpobench.testing.laws import LAWS

FOLDER = Path(__file__).parent / "plugins"
# File and function of this name -> the law it breaks, and words of the reason.
FAULTY = {
    "batch_mean": ("separability", "depends on the other pairs"),
    "beta_unused": ("strength", "beta has no effect"),
    "claims_coupling": ("separability", "no pair's loss depends on another"),
    "claims_no_reference": ("reference", "the reference changes the loss"),
    "counts_padding": ("padding", "padding changes the result"),
    "detached": ("gradient", "does not reach the policy"),
    "divides_by_batch": ("separability", "without averaging"),
    "first_pair_only": ("permutation", "order of the pairs"),
    "flat_at_start": ("gradient", "training never starts"),
    "flipped_sign": ("direction", "the chosen answer is pushed down"),
    "flipped_target": ("direction", "pushes the wrong way before any target"),
    "grid_empty": ("declaration", "the grid of beta is empty"),
    "grid_out_of_bounds": ("declaration", r"beta = 0.0: outside \(0, inf\)"),
    "grid_repeats": ("declaration", "distinct values"),
    "half_detached": ("derivative", "something is detached"),
    "ignores_mask": ("padding", "padding changes the result"),
    "ignores_reference": ("reference", "declare reference=False"),
    "in_place_margin": ("untouched", "changes pairs.margin in place"),
    "in_place_reference": ("untouched", "changes pairs.chosen.reference in place"),
    "integer_beta": ("declaration", "write a float"),
    "monotone_called_target": ("direction", "the pull never turns"),
    "no_docstring": ("declaration", "no docstring"),
    "no_tensor": ("shape", "returns a list"),
    "not_of_log_ratios": ("shift", "no function of log-ratios"),
    "one_per_token": ("shape", r"shape \[5, 7\] for 5 pairs"),
    "one_token_answer": ("finite", "answers of 1 and 3 tokens"),
    "oscillating": ("direction", "turns more than once"),
    "overflow": ("finite", "margin of 1000 nats in float32"),
    "overflow_bfloat16": ("finite", "in bfloat16"),
    "overflow_far": ("finite", "in float32"),
    "override": ("derivative", "something is detached or overridden"),
    "raises": ("shape", "raises KeyError: 'confidence'"),
    "random_noise": ("deterministic", "random numbers"),
    "rejected_pushed_up": ("direction", "the rejected answer is pushed up"),
    "remembers": ("deterministic", "two calls"),
    "reseeds": ("deterministic", "random numbers"),
    "scalar_mean": ("shape", r"shape \[\] for 5 pairs"),
    "second_unused": ("strength", "flip has no effect"),
    "start_at_default_only": ("start", r"the loss is 100 \(beta=0.05\)"),
    "start_at_equal_lengths_only": ("start", "at policy = reference the loss is"),
    "start_of_unknown": ("declaration", "start takes 'tau'"),
    "step_loss": ("gradient", "zero for every pair"),
    "target_called_monotone": ("direction", "at a margin of 10 nats the chosen answer is pushed down"),
    "target_out_of_reach": ("direction", "never turns within 2000 nats"),
    "unknown_class": ("declaration", "'upwards' is none of"),
    "unknown_unit": ("declaration", "'per furlong' is none of"),
    "wrong_dtype": ("shape", "keep the dtype"),
    "wrong_shape": ("shape", r"shape \[5, 5\] for 5 pairs"),
    "wrong_start": ("start", "declared as 0.5"),
}


def loaded(name: str, file: str | None = None):
    registry = Registry("variant", "dpobench.variants")
    registry.add_file(FOLDER / f"{file or name}.py")
    return registry.get(name)


def accepted() -> list[str]:
    return Registry("variant", "dpobench.variants").add_file(FOLDER / "accepted.py")


def test_every_law_has_a_loss_that_breaks_it():
    assert {law for law, _ in FAULTY.values()} == {"declaration", *LAWS}


def test_every_example_file_is_tried():
    assert {file.stem for file in FOLDER.glob("*.py")} == {*FAULTY, "accepted"}


@pytest.mark.parametrize("name", FAULTY)
def test_a_faulty_loss_is_refused_with_the_law_it_breaks(name):
    law, words = FAULTY[name]
    with pytest.raises(PluginRefused, match=words) as refusal:
        require(loaded(name))
    assert f"variant {name!r} ({name}.py) breaks the law {law!r}: " in str(refusal.value)


@pytest.mark.parametrize("name", FAULTY)
def test_check_reports_what_require_refuses(name):
    # A loss that remembers its calls or draws random numbers breaks other laws by chance, later ones only.
    broken = [law.name for law in check(loaded(name)) if not law.passed]
    assert broken[0] == FAULTY[name][0]


@pytest.mark.parametrize("name", accepted())
def test_a_sound_loss_is_accepted(name):
    assert [law for law in check(loaded(name, "accepted")) if not law.passed] == []


def test_the_laws_leave_random_numbers_as_they_were():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    check(loaded("hinge", "accepted"))
    assert torch.equal(before, torch.get_rng_state())


def test_a_loss_that_writes_into_its_arguments_does_not_spoil_the_next_check():
    check(loaded("in_place_reference"))
    assert all(law.passed for law in check(loaded("hinge", "accepted")))


def test_laws_hold_without_gradients_switched_on_by_the_caller():
    with torch.no_grad():
        assert all(law.passed for law in check(loaded("hinge", "accepted")))


def test_require_names_an_unknown_hyper_parameter_before_it_tries_anything():
    with pytest.raises(UserError, match="Did you mean 'beta'"):
        require(loaded("hinge", "accepted"), {"betta": 0.1})


def test_require_tries_the_hyper_parameters_it_is_given(tmp_path):
    # Sound at beta 0.1 and all along its grid, not a number at beta 0.9.
    file = tmp_path / "brittle.py"
    file.write_text(
        '"""Brittle."""\nimport torch\nfrom dpobench import loss\n'
        '@loss(source="none", beta_grid=(0.1, 0.2), gradient="free")\n'
        'def brittle(pairs, *, beta: float = 0.1):\n    """Brittle."""\n'
        "    return torch.nn.functional.softplus(-beta * pairs.margin) + (0.5 - torch.tensor(beta)).sqrt()\n"
    )
    registry = Registry("variant", "dpobench.variants")
    registry.add_file(file)
    require(registry.get("brittle"))
    with pytest.raises(PluginRefused, match="'finite'"):
        require(registry.get("brittle"), {"beta": 0.9})
