"""Every registered loss against what other projects' own functions returned on the same log-probabilities."""

import math
import sys
from pathlib import Path

import pytest
import torch

from dpobench import Pairs, Side
from dpobench.losses.registry import variants
from tests.variants.golden import Reading, Term, deviations, evaluated, main_batch, numbers
from tests.variants.golden_cases import (
    BRAIN,
    EXACT,
    EXCUSED,
    FAILED,
    LEFT_OUT,
    LOGGED,
    SINGLE,
    UNSEEN,
    Compared,
    compared,
    first_beta_dpo,
    read,
    tolerance,
)

pytestmark = pytest.mark.shared


@pytest.fixture(scope="module")
def golden(shared: Path) -> dict:
    file = shared / "golden" / "losses.json"
    if not file.is_file():
        pytest.skip("golden/losses.json is absent")
    return read(file)


@pytest.fixture(scope="module")
def results(golden: dict) -> list[Compared]:
    return compared(golden)


def case_of(golden: dict, name: str) -> dict:
    return next(case for case in golden["cases"] if case["id"] == name)


def apart(golden: dict, name: str, loss: str, **params: float) -> dict[str, float]:
    """Deviations of a recorded case from a registered loss."""
    return deviations(evaluated(case_of(golden, name), Reading((Term(loss, params),)), golden["inputs"]))


def test_every_recorded_number_is_returned_by_the_registered_loss_it_belongs_to(results):
    breaches = [
        f"{one.case['id']} as {one.reading.label or one.reading.loss}: {field} is {by:.2g} apart"
        for one in results
        for field, by in one.apart.items()
        if not by <= tolerance(one.case)
    ]
    assert breaches == []


def test_every_recorded_case_is_matched_or_excused_and_none_is_both(golden, results):
    known, matched = {case["id"] for case in golden["cases"]}, {one.case["id"] for one in results}
    assert len(known) == len(golden["cases"]) == 181
    assert matched | set(EXCUSED) == known
    assert not matched & set(EXCUSED)
    fields = sum(len(one.apart) for one in results)
    exact = [by for one in results if tolerance(one.case) == EXACT for by in one.apart.values()]
    sys.stdout.write(
        f"{len(matched)} cases matched in {fields} fields, largest float64 deviation {max(exact):.2g}; "
        f"{len(EXCUSED)} excused\n"
    )


def test_every_recorded_field_of_a_matched_case_is_compared_but_for_what_projects_log(results):
    forgotten = {}
    for one in results:
        recorded = {name for name, value in one.case.items() if value is not None}
        left = recorded - set(one.apart) - LOGGED - set(LEFT_OUT.get(one.case["id"], ()))
        if left:
            forgotten[one.case["id"]] = left
    assert forgotten == {}


def test_the_fields_left_out_are_there_and_would_not_match(golden):
    for name, fields in LEFT_OUT.items():
        assert set(fields) <= set(case_of(golden, name))
    # The batch's mean calibration is a constant per pair, so the logistic parts differ as their whole does.
    case, pairs = case_of(golden, "cal_dpo"), main_batch(golden["inputs"])
    bound = variants.get("dpo").bind(beta=1.0)
    rest = torch.tensor(case["per_pair"], dtype=torch.float64) - bound(pairs.pairs(bound, case)).detach()
    assert rest.tolist() == pytest.approx([float(rest[0])] * 6, rel=1e-12)


def test_every_registered_loss_is_covered_but_those_that_nobody_else_has(results):
    assert set(variants.names()) - {one.reading.loss for one in results} == set(UNSEEN)


def test_the_failed_executions_are_the_known_ones(golden):
    assert {failure["id"]: failure["error"].partition(":")[0] for failure in golden["failures"]} == {
        name: reason.partition(":")[0].partition(" ")[0] for name, reason in FAILED.items()
    }


def test_only_cases_with_lower_precision_inside_are_given_more_room(results):
    worst = dict.fromkeys([*SINGLE, *BRAIN], 0.0)
    for one in results:
        if one.case["id"] in worst:
            worst[one.case["id"]] = max(worst[one.case["id"]], *one.apart.values())
    assert min(worst.values()) > EXACT
    assert {one.case["id"] for one in results if one.case["dtype"] != "float64"} == {
        one.case["id"] for one in results if one.case["batch"] == "extreme" or one.case["id"].startswith("trl.f.alpha")
    }


def test_where_another_project_overflows_ours_is_finite(golden, results):
    overflowing = {"extreme.trl.sigmoid.forward_kl", "extreme.fdpo_repo.forward_dpo_loss"}
    for one in results:
        recorded = torch.cat([numbers(one.case[name]) for name in one.apart])
        assert bool(recorded.isfinite().all()) == (one.case["id"] not in overflowing), one.case["id"]
        if one.case["id"] in overflowing:
            values = evaluated(one.case, one.reading, golden["inputs"])
            assert values.losses.isfinite().all()
            assert values.batch.policy.grad.isfinite().all()


def test_log_probabilities_taken_from_the_recorded_logits_are_the_recorded_ones(golden):
    batch = main_batch(golden["inputs"])
    for values, name in ((batch.policy.detach(), "policy_token_logps"), (batch.reference, "ref_token_logps")):
        recorded = torch.tensor(golden["inputs"][name], dtype=torch.float64)
        assert values[batch.mask].tolist() == pytest.approx(recorded[batch.mask].tolist(), rel=1e-12)
    taken = batch.reference_table.gather(-1, batch.targets[..., None]).squeeze(-1)
    assert taken[batch.mask].tolist() == pytest.approx(batch.reference[batch.mask].tolist(), rel=1e-12)


@pytest.mark.parametrize(
    ("name", "loss", "params"),
    [
        ("mitchell.cdpo", "rdpo", {"beta": 0.1, "flip": 0.2}),
        ("torchtune.ipo", "ipo", {"beta": 0.1}),
        ("trl024.bco_pair", "bco_pair_no_shift", {"beta": 0.1}),
        ("sampo_repo.mix", "dpo_nll_token", {"beta": 0.1, "weight": 0.05}),
        ("llamafactory.ld_dpo", "ld_dpo", {"beta": 0.1, "alpha": 0.5}),
        ("llamafactory.orpo", "orpo", {"weight": 0.1}),
        ("tdpo2", "tdpo1", {"beta": 0.1}),
        ("trl.aot.b0.1", "aot_unpaired", {"beta": 0.1}),
        ("exo_repo.exo-pref", "exo", {"beta": 0.1}),
        ("sppo_repo.hard", "sppo_hard", {"beta": 0.1}),
    ],
)
def test_losses_that_go_by_one_name_elsewhere_are_distinguished(golden, name, loss, params):
    assert apart(golden, name, loss, **params)["scalar"] > 1e-3


def test_a_loss_of_the_right_value_and_the_wrong_gradient_is_refused(golden):
    # tdpo2 at alpha 1 has the value of tdpo1, and holds the chosen side's divergence constant, which tdpo1 does not.
    distances = apart(golden, "tdpo1", "tdpo2", beta=0.1, alpha=1.0)
    assert distances["per_pair"] < EXACT
    assert distances["grad_logits_abs_sum"] > 1e-3


def test_the_recorded_batch_does_not_try_the_clamp_of_wpo_the_anchors_of_kto_pair_or_the_gain_of_beta_dpo(golden):
    # What the table says of them; when this fails, the table is out of date.
    assert max(apart(golden, "wpo", "wpo_unclamped", beta=0.1).values()) < EXACT
    assert max(apart(golden, "trl.wpo", "wpo", beta=0.1).values()) < EXACT
    half = Reading((Term("kto_pair", {"beta": 0.1}, 2.0),))
    values = evaluated(case_of(golden, "liger.apo_zero"), half, golden["inputs"])
    assert max(deviations(values).values()) < EXACT
    steep = Term("beta_dpo", {"beta": 0.1, "gain": 5.0, "drop": 0.0}, statistics=first_beta_dpo)
    values = evaluated(case_of(golden, "beta_dpo.nofilter"), Reading((steep,)), golden["inputs"])
    assert max(deviations(values).values()) < EXACT


def test_the_one_that_ignores_label_smoothing_equals_dpo_and_not_cdpo(golden):
    assert apart(golden, "trl.sigmoid.ls0.2_ignored", "dpo", beta=0.1)["scalar"] < 1e-12
    assert apart(golden, "trl.sigmoid.ls0.2_ignored", "cdpo", beta=0.1, flip=0.2)["scalar"] > 0.03


def test_the_one_that_is_not_a_number_at_the_start_has_a_value_here(golden):
    assert case_of(golden, "halos.ipo.at_init")["scalar"] == "nan"
    given = main_batch(golden["inputs"])
    rows = slice(0, given.half), slice(given.half, None)
    start = Pairs(*(Side(given.reference[r], given.reference[r], given.mask[r]) for r in rows))
    assert variants.get("ipo").bind(beta=0.1)(start).tolist() == pytest.approx([25.0] * 6)


def test_the_one_that_counts_a_token_too_many_differs_from_its_count_of_scored_tokens(golden):
    case = case_of(golden, "trl.ipo.empty_prompt")
    assert case["per_pair"] == pytest.approx(case["with_completion_mask"], rel=1e-12)
    assert not any(
        math.isclose(a, b, rel_tol=1e-3) for a, b in zip(case["per_pair"], case["with_scored_tokens"], strict=True)
    )
