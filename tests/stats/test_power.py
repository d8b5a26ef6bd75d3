import math

import numpy as np
import pytest
from scipy import stats

from dpobench.analysis.power import lines
from dpobench.errors import UserError
from dpobench.stats.components import Components, advice, alternatives, components, to_halve
from dpobench.stats.power import power, prompts_needed, seeds_needed, smallest_effect
from tests.stats.simulate import Design, experiments

KNOWN = Components(prompts=0.09, method=0.02, seed=0.0004, residual=0.09)


def drawn(seeds, prompts, variants, variances, rng):
    shared = rng.normal(0, variances.prompts**0.5, prompts)
    return [
        shared
        + rng.normal(0, variances.method**0.5, prompts)
        + rng.normal(0, variances.seed**0.5, (seeds, 1))
        + rng.normal(0, variances.residual**0.5, (seeds, prompts))
        for _ in range(variants)
    ]


def test_components_by_hand():
    # Two variants, two seeds, two prompts; arm a: rows (0, 2), (4, 10); arm b: all zero.
    a, b = np.array([[0.0, 2.0], [4.0, 10.0]]), np.zeros((2, 2))
    variances = components([a, b])
    # Residuals of a are +-1: mean square 4/1; of b 0; pooled (4 + 0)/2 = 2.
    assert variances.residual == pytest.approx(2.0)
    # Prompt means (2, 6) and (0, 0): what is left after rows and columns is +-1, mean square 4/1 = 4; less 2/2 = 3.
    assert variances.method == pytest.approx(3.0)
    # Prompt means over variants (1, 3): variance 2; less 4/2 = 0.
    assert variances.prompts == pytest.approx(0.0)
    # Seed means (1, 7): variance 18, and 0; mean 9; less 2/2 = 8.
    assert variances.seed == pytest.approx(8.0)


def test_components_are_right_on_average():
    rng = np.random.default_rng(0)
    variances = [components(drawn(3, 150, 4, KNOWN, rng)) for _ in range(200)]
    for name in ("prompts", "method", "seed", "residual"):
        values = [getattr(one, name) for one in variances]
        # Cutting at zero moves the smallest up a little.
        assert np.mean(values) == pytest.approx(getattr(KNOWN, name), rel=0.08), name


def test_the_error_of_a_difference_is_that_of_its_parts():
    rng = np.random.default_rng(1)
    differences = [a.mean() - b.mean() for a, b in (drawn(3, 150, 2, KNOWN, rng) for _ in range(3000))]
    assert np.std(differences) == pytest.approx(KNOWN.se(3, 150), rel=0.05)


def test_with_one_seed_nothing_is_known_of_the_seeds():
    variances = components(drawn(1, 150, 3, KNOWN, np.random.default_rng(2)))
    assert math.isnan(variances.seed)
    assert variances.residual == 0.0
    assert "a second seed comes before anything else" in advice(variances, 1, 150)


def test_to_halve_by_hand():
    # Per difference: prompt x variant 2*0.02/100 = 4e-4, seed 2*0.0001/2 = 1e-4, residual 2*0.04/200 = 4e-4: 9e-4, a quarter is 2.25e-4.
    needed = to_halve(Components(0.1, 0.02, 0.0001, 0.04), 2, 100)
    # Prompts shrink 8e-4 to 1.25e-4: 6.4 times, 640. Seeds shrink 5e-4 beside 4e-4 that stay; answers 4e-4 beside 5e-4.
    assert needed == {"prompts": 640, "answers per prompt": None, "seeds": None}


def test_what_halves_the_error_halves_it():
    variances = Components(0.1, 0.0, 0.0005, 0.137)
    count = to_halve(variances, 3, 264)["seeds"]
    assert count == 12
    assert variances.se(count, 264) == pytest.approx(variances.se(3, 264) / 2)
    assert "12 seeds in place of 3" in advice(variances, 3, 264)
    assert "No number of prompts or of answers per prompt alone" in advice(variances, 3, 264)


def test_alternatives_tell_their_price():
    by_name = {other.change: other for other in alternatives(KNOWN, 3, 200)}
    assert (by_name["twice the seeds"].trainings, by_name["twice the seeds"].answers) == (2, 2)
    assert (by_name["twice the prompts"].trainings, by_name["twice the prompts"].answers) == (1, 2)
    assert by_name["twice the prompts"].se == KNOWN.se(3, 400)


def test_power_without_spread_between_checkpoints_is_that_of_the_paired_t_test():
    # One seed, 100 prompts, paired differences of variance 2*(0.02 + 0.09) = 0.22, effect 0.15: noncentrality 3.198.
    shift, edge = 0.15 / math.sqrt(0.22 / 100), stats.t.ppf(0.975, 99)
    expected = stats.nct.sf(edge, 99, shift) + stats.nct.cdf(-edge, 99, shift)
    assert power(0.15, KNOWN, 1, 100) == pytest.approx(expected, abs=0.005)


@pytest.mark.parametrize(("seeds", "comparisons"), [(2, 1), (3, 1), (3, 4), (5, 2)])
def test_power_is_the_share_of_experiments_that_show_the_effect(seeds, comparisons):
    design = Design(seeds, 200, 0.02, 0.2, effect=smallest_effect(KNOWN, seeds, 200, comparisons=comparisons))
    value, spread = experiments(design, 1, 4000, np.random.default_rng(3)).difference(1)
    shown = np.mean(spread.p(value) < 0.05 / comparisons)
    # Three standard errors of the simulation, and two of the 4000 errors that `power` draws.
    assert shown == pytest.approx(0.8, abs=3 * math.sqrt(0.16 / 4000) + 0.01)


def test_what_an_effect_needs_is_enough_and_one_less_is_not():
    count = seeds_needed(0.05, KNOWN, 500)
    assert power(0.05, KNOWN, count, 500) >= 0.8 > power(0.05, KNOWN, count - 1, 500)
    many = prompts_needed(0.08, KNOWN, 5)
    assert power(0.08, KNOWN, 5, many) >= 0.8 > power(0.08, KNOWN, 5, int(many * 0.9))
    assert prompts_needed(0.01, KNOWN, 3) is None
    assert seeds_needed(0.0001, KNOWN, 10) is None


def test_a_design_without_any_spread_sees_everything():
    assert smallest_effect(Components(0.1, 0, 0, 0), 3, 100) == 0.0


def test_the_command_answers_before_anything_is_trained():
    text = lines(seeds=3, prompts=500, variants=4, effect=0.03)
    assert text[2].startswith("3 seeds, 500 test prompts, 3 tested against the control, level 0.05: differences from ")
    assert any(line.startswith("A true difference of 0.03 is shown with a chance of ") for line in text)
    assert sum(line.lstrip().startswith(("2 ", "3 ", "5 ", "10 ")) for line in text[-4:]) == 4
    smallest = float(text[2].split("from ")[1].split()[0])
    assert any(f"{smallest:.3f}" in line for line in text[-4:])


def test_more_seeds_and_prompts_see_smaller_differences():
    body = [[float(x) for x in line.split()[1:]] for line in lines()[-4:]]
    assert all(np.diff(row).max() < 0.002 for row in body)
    assert np.diff(np.array(body), axis=0).max() < 0


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ({"seeds": 0}, "--seeds 0: at least 1"),
        ({"prompts": 1}, "--prompts 1: at least 2"),
        ({"variants": 1}, "--variants 1: at least 2"),
        ({"alpha": 0.7}, "--alpha 0.7: a level between 0 and 0.5"),
        ({"effect": -0.1}, "--effect -0.1: a difference above 0"),
        ({"effect": 3.0}, "3 points of win-rate are 0.03"),
    ],
)
def test_an_impossible_question_is_refused(question, message):
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        lines(**question)


def test_a_folder_without_an_experiment_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no plan\.json"):
        lines(source=tmp_path)
