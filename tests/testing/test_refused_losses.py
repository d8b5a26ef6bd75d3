"""Faulty losses are refused with the law they break; losses of other papers are not refused."""

from pathlib import Path

import pytest
import torch

from dpobench.errors import PluginRefused, UserError
from dpobench.losses.quantities import NEEDS
from dpobench.losses.registry import LossRegistry
from dpobench.plugins.plugin import Interval
from dpobench.testing import check, require
from dpobench.testing.batches import chosen_rows, ordinary, started, swept
from dpobench.testing.loss_laws import LAWS
from dpobench.testing.probe import Probe, drawn_inside

FOLDER = Path(__file__).parent / "losses"
# File and function of this name -> the law it breaks, and words of the reason.
FAULTY = {
    "batch_mean": ("separability", "depends on the other pairs"),
    "beta_unused": ("strength", "beta has no effect"),
    "claims_coupling": ("separability", "no pair's loss depends on another"),
    "claims_probability": ("probability", "not logistic in beta x margin"),
    "claims_no_reference": ("reference", "the reference changes the loss"),
    "claims_stop": ("derivative", "stops_gradient=True, but nothing is held constant"),
    "column_at_its_end": ("finite", "with score = 0; guard against"),
    "column_in_place": ("untouched", r"changes pairs.columns\['score'\] in place"),
    "column_interval_of_words": ("columns", r"'\(zero, one\)' is no interval"),
    "column_interval_unreadable": ("columns", "column score: 'positive' is no interval"),
    "column_interval_wrong": ("columns", r"column score: '\(1, 0\)' holds no value"),
    "column_normalised": ("separability", "depends on the other pairs"),
    "column_undeclared": ("shape", "it reads 'scores', which it does not declare: add it to columns"),
    "column_unused": ("columns", "declares 'score', but it has no effect"),
    "columns_alike": ("finite", "with high = 0, low = 0; guard against"),
    "counts_padding": ("padding", "padding changes the result"),
    "denominator_of_collision": ("denominators", "depends on the policy"),
    "denominator_of_policy": ("denominators", "depends on the policy"),
    "denominator_of_the_batch": ("separability", "depends on the other pairs"),
    "denominator_with_gradient": ("denominators", "depends on the policy"),
    "denominator_zero": ("denominators", "is 0 for a pair"),
    "detached": ("gradient", "does not reach the policy"),
    "divides_by_batch": ("separability", "without averaging"),
    "divides_by_zero": ("shape", "it raises ZeroDivisionError"),
    "entropy_called_no_reference": ("reference", "the reference changes the loss"),
    "epsilon_missing": ("declaration", "add a keyword-only argument epsilon"),
    "extra_counts_padding": ("padding", "padding changes the result"),
    "first_pair_only": ("permutation", "order of the pairs"),
    "flat_at_start": ("gradient", "training never starts"),
    "flipped_sign": ("direction", "the chosen answer is pushed down"),
    "flipped_target": ("direction", "pushes the wrong way before any target"),
    "gold_detached": ("derivative", "something is detached"),
    "gold_noise": ("shape", "reads 'noise' of further completions"),
    "gold_reference": ("finite", "reads the gold answer's reference, which is not computed"),
    "gold_undeclared": ("shape", "it reads 'gold', which it does not declare: add it to needs"),
    "grid_empty": ("declaration", "the grid of beta is empty"),
    "grid_out_of_bounds": ("declaration", r"beta = 0.0: outside \(0, inf\)"),
    "grid_repeats": ("declaration", "distinct values"),
    "half_detached": ("derivative", "something is detached"),
    "ignores_mask": ("padding", "padding changes the result"),
    "ignores_reference": ("reference", "declare reference=False"),
    "in_place_margin": ("untouched", "changes pairs.margin in place"),
    "in_place_reference": ("untouched", "changes pairs.chosen.reference in place"),
    "init_empty": ("statistics", "init returns no statistics"),
    "init_not_finite": ("statistics", "init gives delta the value inf"),
    "init_raises": ("statistics", "init raises ZeroDivisionError"),
    "integer_beta": ("declaration", "write a float"),
    "kl_detached": ("derivative", "something is detached"),
    "monotone_called_target": ("direction", "the gradient never changes sign"),
    "need_twice": ("declaration", "names something twice"),
    "need_undeclared": ("shape", "it reads 'collision', which it does not declare: add it to needs"),
    "need_unknown": ("declaration", "no need is called 'noize'. Did you mean 'noise'"),
    "need_unused": ("needs", "noise has no effect on value or gradient"),
    "no_docstring": ("declaration", "no docstring"),
    "no_source": ("declaration", "no source"),
    "no_tensor": ("shape", "returns a list"),
    "noise_cancels": ("needs", "noise has no effect on value or gradient"),
    "noise_ignored_global_rng": ("deterministic", "random ones are in the need 'noise'"),
    "noise_in_place": ("untouched", r"changes pairs.chosen.extras\['noise'\] in place"),
    "noise_of_first_pair": ("permutation", "order of the pairs"),
    "noise_of_padding": ("padding", "padding changes the result"),
    "not_of_log_ratios": ("shift", "no function of log-ratios"),
    "one_per_token": ("shape", r"shape \[5, 7\] for 5 pairs"),
    "one_token_answer": ("finite", "answers of 1 and 3 tokens"),
    "oscillating": ("direction", "changes sign more than once"),
    "overflow": ("finite", "margin of 1000 nats in float32"),
    "overflow_bfloat16": ("finite", "in bfloat16"),
    "overflow_far": ("finite", "in float32"),
    "override": ("derivative", "something is detached or overridden"),
    "raises": ("shape", "it reads 'confidence', which it does not declare: add it to columns"),
    "random_noise": ("deterministic", "random numbers"),
    "ratio_at_times": ("denominators", "how many ratios"),
    "ratio_no_tuple": ("shape", "no tuple of Ratio"),
    "ratio_of_large_batches": ("separability", "depends on the other pairs"),
    "ratio_of_neighbours": ("separability", "depends on the other pairs"),
    "ratio_weight_of_batch": ("shape", "weight is a Tensor; write a number"),
    "ratio_wrong_dtype": ("shape", "denominator is torch.int64 for log-probabilities in torch.float64"),
    "ratio_wrong_shape": ("shape", r"numerator is of shape \[\] for 5 pairs"),
    "rejected_pushed_up": ("direction", "the rejected answer is pushed up"),
    "remembers": ("deterministic", "two calls"),
    "reseeds": ("deterministic", "random numbers"),
    "running_and_broken": ("shape", "it reads 'gamma', which it does not declare: add it to running"),
    "scalar_mean": ("shape", r"shape \[\] for 5 pairs"),
    "second_unused": ("strength", "flip has no effect"),
    "secret_detach": ("derivative", "declare stops_gradient=True if the method prescribes it"),
    "spoils_backward": ("gradient", "the gradient cannot be taken"),
    "start_at_default_only": ("start", r"the loss is 100 \(beta=0.05\)"),
    "start_at_equal_lengths_only": ("start", "at policy = reference the loss is"),
    "start_is_text": ("declaration", "start='log 2' is neither a number nor a function"),
    "start_of_unknown": ("declaration", "start takes 'tau'"),
    "statistics_undeclared": ("shape", "it reads 'delta', which it does not declare: add it to running"),
    "statistics_unused": ("statistics", "delta has no effect"),
    "std_of_batch": ("finite", "not finite where the policy equals the reference"),
    "step_loss": ("gradient", "zero for every pair"),
    "target_called_monotone": ("direction", "at a margin of 10 nats the chosen answer is pushed down"),
    "target_out_of_reach": ("direction", "never changes sign within 2000 nats"),
    "unknown_class": ("declaration", "'upwards' is none of"),
    "unknown_unit": ("declaration", "'per furlong' is none of"),
    "update_counts_padding": ("statistics", "padding changes what update returns"),
    "update_depends_on_order": ("statistics", "the order of the pairs in the batch changes what update returns"),
    "update_forgets_a_name": ("statistics", "count is not in both"),
    "update_in_place": ("statistics", "changes the statistics that it is given in place"),
    "update_of_large_batches": ("statistics", r"update returns \[\], init \['delta'\]"),
    "update_of_one_pair": ("statistics", "delta nan on a batch of one pair"),
    "update_raises": ("statistics", "update reads 'mean', which the loss does not declare"),
    "update_random": ("statistics", "random ones are in the need 'noise'"),
    "update_reads_a_need": ("statistics", "update reads 'collision', which the loss does not declare"),
    "update_remembers": ("statistics", "two updates"),
    "update_returns_many": ("statistics", "update raises ValueError"),
    "update_takes_tau": ("declaration", "update takes 'tau'"),
    "update_writes_pairs": ("statistics", "update changes pairs.chosen.policy in place"),
    "wrong_dtype": ("shape", "keep the dtype"),
    "wrong_shape": ("shape", r"shape \[5, 5\] for 5 pairs"),
    "wrong_start": ("start", "declared as 0.5"),
}


def loaded(name: str, file: str | None = None):
    registry = LossRegistry()
    registry.add_file(FOLDER / f"{file or name}.py")
    return registry.get(name)


def accepted() -> list[str]:
    return LossRegistry().add_file(FOLDER / "accepted.py")


def test_every_law_has_a_loss_that_breaks_it():
    assert {law for law, _ in FAULTY.values()} == {"declaration", *LAWS}


def test_every_example_file_is_tried():
    assert {file.stem for file in FOLDER.glob("*.py")} == {*FAULTY, "running_alone", "accepted"}


@pytest.mark.parametrize("name", FAULTY)
def test_a_faulty_loss_is_refused_with_the_law_it_breaks(name):
    law, words = FAULTY[name]
    with pytest.raises(PluginRefused, match=words) as refusal:
        require(loaded(name))
    assert f"variant {name!r} ({name}.py) breaks the law {law!r}: " in str(refusal.value)


def test_statistics_that_are_no_two_functions_are_refused_before_any_law():
    with pytest.raises(PluginRefused, match=r"'running_alone' .*: running is no pair .*write running=\(init, update\)"):
        loaded("running_alone")


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
    check(loaded("own_hinge", "accepted"))
    assert torch.equal(before, torch.get_rng_state())


def test_a_loss_that_writes_into_its_arguments_does_not_spoil_the_next_check():
    check(loaded("in_place_reference"))
    assert all(law.passed for law in check(loaded("own_hinge", "accepted")))


def test_laws_hold_without_gradients_switched_on_by_the_caller():
    with torch.no_grad():
        assert all(law.passed for law in check(loaded("own_hinge", "accepted")))


def test_require_names_an_unknown_hyper_parameter_before_it_tries_anything():
    with pytest.raises(UserError, match="Did you mean 'beta'"):
        require(loaded("own_hinge", "accepted"), {"betta": 0.1})


def test_require_tries_the_hyper_parameters_it_is_given(tmp_path):
    # Sound at beta 0.1 and all along its grid, not a number at beta 0.9.
    file = tmp_path / "brittle.py"
    file.write_text(
        '"""Brittle."""\nimport torch\nfrom dpobench import loss\n'
        '@loss(source="none", beta_grid=(0.1, 0.2), gradient="free")\n'
        'def brittle(pairs, *, beta: float = 0.1):\n    """Brittle."""\n'
        "    return torch.nn.functional.softplus(-beta * pairs.margin) + (0.5 - torch.tensor(beta)).sqrt()\n"
    )
    registry = LossRegistry()
    registry.add_file(file)
    require(registry.get("brittle"))
    with pytest.raises(PluginRefused, match="'finite'"):
        require(registry.get("brittle"), {"beta": 0.9})


def test_the_batches_hold_everything_that_a_loss_may_need():
    for pairs in (ordinary(), swept()):
        assert {*pairs.chosen.extras, *pairs.others} == set(NEEDS)
        assert set(pairs.rejected.extras) == set(pairs.chosen.extras)
        assert len(pairs.gold.policy) == len(pairs)
        assert pairs.gold.reference.isnan().all()
        assert len(pairs.mismatched.policy) == 2 * len(pairs)


@pytest.mark.parametrize("pairs", [ordinary(), swept()], ids=["ordinary", "swept"])
def test_the_needs_of_a_batch_lie_where_real_ones_do(pairs):
    for side in (pairs.chosen, pairs.rejected):
        found = {name: value[side.mask] for name, value in side.extras.items()}
        assert bool(((found["noise"] > 0) & (found["noise"] < 1)).all())
        assert bool(((found["reference_entropy"] > 0) & (found["reference_entropy"] < 1)).all())
        assert bool((found["reference_kl"] >= 0).all())
        # The sum of squared probabilities holds the token's own square and is at most 1.
        assert bool(((found["collision"] <= 0) & (found["collision"] >= 2 * side.policy[side.mask] - 1e-6)).all())
        assert bool((found["extrapolated"] <= 0).all())
        assert bool((found["interpolated"] <= 0).all())


def test_where_the_policy_equals_the_reference_nothing_is_between_them():
    pairs = started(ordinary())
    for side in (pairs.chosen, pairs.rejected):
        assert torch.equal(side.policy, side.reference)
        assert not side.extras["reference_kl"].any()
        assert torch.equal(side.extras["extrapolated"], side.reference)
        assert torch.equal(side.extras["interpolated"], side.reference)
    assert torch.equal(pairs.mismatched.policy, pairs.mismatched.reference)


def test_a_pair_takes_its_further_completions_along():
    pairs, part = ordinary(), chosen_rows(ordinary(), [3, 1])
    assert torch.equal(part.gold.policy, pairs.gold.policy[[3, 1]])
    # Five pairs: the mismatched completions of pair i are rows i and 5 + i.
    assert torch.equal(part.mismatched.policy, pairs.mismatched.policy[[3, 1, 8, 6]])
    assert torch.equal(part.chosen.extras["noise"], pairs.chosen.extras["noise"][[3, 1]])


def test_a_loss_is_given_what_it_declares_and_nothing_else():
    given = Probe(loaded("own_odpo", "accepted")).ordinary
    assert set(given.columns) == {"score_chosen", "score_rejected"}
    assert not given.chosen.extras
    assert not given.others
    given = Probe(loaded("own_sampo", "accepted")).ordinary
    assert set(given.chosen.extras) == set(given.rejected.extras) == {"noise"}
    with pytest.raises(KeyError):
        given.chosen.total("collision")
    assert set(Probe(loaded("own_kto", "accepted")).ordinary.others) == {"mismatched"}


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [("(-inf, inf)", -3, 3), ("(0, inf)", 0, 3), ("[5, inf)", 5, 8), ("(-inf, -4]", -7, -4), ("[0, 0.5)", 0, 0.5)],
)
def test_columns_are_drawn_inside_their_intervals(text, low, high):
    found = drawn_inside(Interval(text), 50, 2)
    assert low < found.min() < low + 0.1 * (high - low)
    assert high - 0.1 * (high - low) < found.max() < high
    assert torch.equal(found, drawn_inside(Interval(text), 50, 2))
    assert not torch.equal(found, drawn_inside(Interval(text), 50, 3))


def test_statistics_are_those_of_the_batch_at_hand():
    probe = Probe(loaded("own_bco", "accepted"))
    rewards = [0.1 * side.logratio.mean() for side in (ordinary().chosen, ordinary().rejected)]
    assert probe.statistics(probe.ordinary) == pytest.approx({"delta": float(sum(rewards) / 2), "seen": 5.0})
