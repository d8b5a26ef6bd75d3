"""The four losses against what other projects' own functions returned on the same log-probabilities."""

import json
import math
import sys
from pathlib import Path

import pytest
import torch

from dpobench import Pairs, Side
from dpobench.registry import variants
from tests.strategies import of_margins

pytestmark = pytest.mark.shared

TOLERANCE = {"float64": 5e-8, "float32": 3e-6}
# Family of the recorded case -> our loss and the factor between them. "sigmoid" and "ipo" are names of the extreme batch.
FAMILIES = {
    "dpo": ("dpo", lambda beta: 1.0),
    "sigmoid": ("dpo", lambda beta: 1.0),
    "cdpo": ("cdpo", lambda beta: 1.0),
    "ipo_mean": ("ipo", lambda beta: 1.0),
    "ipo": ("ipo", lambda beta: 1.0),
    "ipo_sum": ("ipo_sum", lambda beta: 1.0),
    "ipo_scaled_sum": ("ipo_sum", lambda beta: beta**2),
}
BETA = ("beta", "beta_pi", "tau")
FLIP = ("label_smoothing", "epsilon")
# Cases that carry one of these family names and are no such loss, or whose numbers are wrong, with the reason.
EXCEPTIONS = {
    "trl.sigmoid.ls0.2_ignored": "label smoothing is asked for and ignored: plain DPO is returned",
    "trl.ipo.empty_prompt": "divides by one token more than it scored where nothing precedes the completion",
    "halos.ipo.at_init": "counts tokens whose log-ratio is not 0: 0 / 0 where the policy equals the reference",
    "extreme.trl.sigmoid.forward_kl": "a forward-KL divergence, not DPO",
    "extreme.trl.sigmoid.js_divergence": "a Jensen-Shannon divergence, not DPO",
}
# Executions of these families that ended in an error, so that there is nothing to compare.
FAILURES = {"liger.ipo", "torchtune.HEAD.import", "swift.ipo.padded"}
# Families that have our names in theirs and are other losses.
OTHERS = {"cpo_ipo_mean", "ipo_mean_js", "mallows_ipo_sum"}


@pytest.fixture(scope="module")
def golden(shared: Path) -> dict:
    file = shared / "golden" / "losses.json"
    if not file.is_file():
        pytest.skip("golden/losses.json is absent")
    return json.loads(file.read_text(encoding="utf-8"))


def of_our_families(golden: dict) -> dict[str, dict]:
    return {case["id"]: case for case in golden["cases"] if case["loss"] in FAMILIES}


def main_batch(inputs: dict) -> Pairs:
    policy, reference = (torch.tensor(inputs[f"{who}_token_logps"], dtype=torch.float64) for who in ("policy", "ref"))
    mask, half = torch.tensor(inputs["mask"], dtype=torch.bool), inputs["B"]
    chosen = Side(policy[:half].clone().requires_grad_(), reference[:half], mask[:half])
    return Pairs(chosen, Side(policy[half:].clone().requires_grad_(), reference[half:], mask[half:]))


def bound(case: dict):
    name, factor = FAMILIES[case["loss"]]
    given = case["params"]
    beta = next(given[key] for key in BETA if key in given)
    flips = {"flip": next(given[key] for key in FLIP if key in given)} if name == "cdpo" else {}
    loss = variants.get(name).bind(beta=beta, **flips)
    return lambda pairs: factor(beta) * loss(pairs)


def gradients(pairs: Pairs, averaged: bool) -> dict[str, torch.Tensor]:
    """Gradients under every name that the file has for them, shape [B].

    Every token of an answer has the same gradient. With respect to the sum of the answer's log-probabilities that is this
    gradient; with respect to their mean, which some projects hand to the loss, it is this times the length.
    """
    found = {}
    for name, side in (("chosen", pairs.chosen), ("rejected", pairs.rejected)):
        rows = torch.arange(len(pairs))
        grad, mask = side.policy.grad, side.mask
        positions = torch.arange(mask.shape[1]).expand_as(mask)
        first = positions.masked_fill(~mask, mask.shape[1]).amin(1)
        last = positions.masked_fill(~mask, -1).amax(1)
        found[f"grad_first_token_{name}"] = grad[rows, first]
        found[f"grad_last_token_{name}"] = grad[rows, last]
        found[f"grad_sum_{name}"] = grad.sum(1)
        found[f"grad_{name}"] = grad.sum(1) if averaged else grad[rows, first]
    return found


def deviation(found: torch.Tensor, recorded: list[float]) -> float:
    """Largest difference, relative to values above 1."""
    expected = torch.tensor(recorded, dtype=torch.float64)
    return float(((found.double() - expected).abs() / expected.abs().clamp(min=1.0)).max())


def deviations(case: dict, inputs: dict) -> dict[str, float]:
    """Deviation of each number that a case records."""
    if case["batch"] == "extreme":
        pairs = of_margins(case["log_ratio_margin"], dtype=torch.float32)
        losses, scale = bound(case)(pairs), 1.0
    else:
        pairs = main_batch(inputs)
        losses = bound(case)(pairs)
        scale = 1 / len(pairs)
    (losses.sum() * scale).backward()
    found = {"per_pair": losses.detach(), "scalar": losses.detach().mean()[None]}
    found |= gradients(pairs, averaged=case["params"].get("avg_logp", False))
    recorded = {key: case[key] if isinstance(case[key], list) else [case[key]] for key in found if key in case}
    return {key: deviation(found[key], values) for key, values in recorded.items()}


def test_every_recorded_case_of_these_losses_is_matched_or_excused(golden):
    matched, worst, numbers = set(), 0.0, 0
    for name, case in of_our_families(golden).items():
        if name in EXCEPTIONS:
            continue
        apart = deviations(case, golden["inputs"])
        assert {"scalar", "per_pair"} & set(apart), f"{name}: nothing was compared"
        for what, by in apart.items():
            assert by <= TOLERANCE[case["dtype"]], f"{name}: {what} is {by:.3g} apart"
            numbers += 1
        worst = max(worst, *(by for by in apart.values() if case["dtype"] == "float64"), 0.0)
        matched.add(name)
    assert matched | set(EXCEPTIONS) == set(of_our_families(golden))
    assert not matched & set(EXCEPTIONS)
    sys.stdout.write(
        f"{len(matched)} cases matched in {numbers} fields, largest float64 deviation {worst:.2g}; {len(EXCEPTIONS)} excused\n"
    )
    assert len(matched) >= 30


def test_most_cases_record_a_gradient_and_it_is_compared(golden):
    with_gradient = [
        name
        for name, case in of_our_families(golden).items()
        if name not in EXCEPTIONS and any(key.startswith("grad") for key in deviations(case, golden["inputs"]))
    ]
    without = set(of_our_families(golden)) - set(EXCEPTIONS) - set(with_gradient)
    assert without == {"nemo.dpo", "exo_repo.dpo-pref"}, "only these two record no gradient"


def test_no_other_recorded_loss_goes_by_one_of_our_names(golden):
    ours = {
        case["loss"] for case in golden["cases"] if "ipo" in case["loss"] or case["loss"] in ("dpo", "cdpo", "sigmoid")
    }
    assert ours - set(FAMILIES) == OTHERS


def test_the_failed_executions_of_these_losses_are_the_known_ones(golden):
    assert {failure["id"] for failure in golden["failures"] if failure["loss"] in FAMILIES} == FAILURES


def test_the_one_that_ignores_label_smoothing_equals_dpo_and_not_cdpo(golden):
    case = of_our_families(golden)["trl.sigmoid.ls0.2_ignored"]
    pairs = main_batch(golden["inputs"])
    plain, smoothed = (variants.get("dpo").bind(beta=0.1), variants.get("cdpo").bind(beta=0.1, flip=0.2))
    assert float(plain(pairs).detach().mean()) == pytest.approx(case["scalar"], rel=1e-12)
    assert abs(float(smoothed(pairs).detach().mean()) - case["scalar"]) > 0.03


def test_the_one_that_is_not_a_number_at_the_start_has_a_value_here(golden):
    assert of_our_families(golden)["halos.ipo.at_init"]["scalar"] == "nan"
    given = main_batch(golden["inputs"])
    start = Pairs(*(Side(s.reference, s.reference, s.mask) for s in (given.chosen, given.rejected)))
    assert variants.get("ipo").bind(beta=0.1)(start).tolist() == pytest.approx([25.0] * 6)


def test_the_one_that_counts_a_token_too_many_differs_from_its_own_count_of_scored_tokens(golden):
    case = of_our_families(golden)["trl.ipo.empty_prompt"]
    assert case["per_pair"] == pytest.approx(case["with_completion_mask"], rel=1e-12)
    assert not any(
        math.isclose(a, b, rel_tol=1e-3) for a, b in zip(case["per_pair"], case["with_scored_tokens"], strict=True)
    )
