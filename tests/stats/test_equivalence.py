from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from dpobench.stats.compare import Equivalence, equivalences, letters, two_one_sided
from dpobench.stats.crossed import Estimate, crossed_difference


def estimate(value, se=0.01, df=1e6):
    return Estimate(value, value - 1.96 * se, value + 1.96 * se, se, df, 500, 3)


def test_two_one_sided_tests_by_hand():
    # Estimate 0.005, SE 0.01, margin 0.02: the nearer bound is 1.5 standard errors away, the tail beyond it 0.0668.
    assert two_one_sided(estimate(0.005), 0.02) == pytest.approx(0.0668072, abs=1e-6)
    assert two_one_sided(estimate(-0.005), 0.02) == pytest.approx(0.0668072, abs=1e-6)
    assert two_one_sided(estimate(0.02), 0.02) == pytest.approx(0.5)
    assert two_one_sided(estimate(0.03), 0.02) == pytest.approx(1 - stats.norm.sf(1), abs=1e-6)


def test_with_one_seed_it_is_the_pair_of_scipys_one_sided_tests():
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.0, 0.1, (1, 60)), rng.normal(0, 0.1, (1, 60))
    d = (a - b)[0]
    low = stats.ttest_1samp(d, -0.05, alternative="greater").pvalue
    high = stats.ttest_1samp(d, 0.05, alternative="less").pvalue
    assert two_one_sided(crossed_difference([a], [b]), 0.05) == pytest.approx(max(low, high), abs=1e-10)


def test_equivalence_is_shown_exactly_where_the_90_per_cent_interval_lies_within_the_margin():
    rng = np.random.default_rng(1)
    control, variant = rng.normal(0, 0.2, (3, 200)), rng.normal(0.01, 0.2, (3, 200))
    interval = crossed_difference([variant], [control], 0.9)
    reach = max(abs(interval.low), abs(interval.high))
    assert two_one_sided(interval, reach * 1.001) < 0.05 < two_one_sided(interval, reach * 0.999)


def test_no_difference_is_claimed_only_where_it_is_shown():
    tests = equivalences({"same": estimate(0.0, 0.004), "open": estimate(0.0, 0.03), "other": estimate(0.2, 0.004)})
    assert tests["same"].verdict(0.9) == "equivalent within 0.02"
    assert tests["open"].verdict(0.9) == "neither shown"
    assert tests["other"].verdict(0.001) == "different, not shown within 0.02"
    # 0.012 with an error of 0.002: surely not zero, and surely below 0.02.
    assert equivalences({"a": estimate(0.012, 0.002)})["a"].verdict(0.001) == "different, yet within 0.02"


def test_one_seed_speaks_of_the_checkpoint():
    assert Equivalence(0.02, 0.01, 0.01, "checkpoint").verdict(0.9).endswith("(this checkpoint only)")


def test_the_margin_must_be_above_zero():
    with pytest.raises(ValueError, match="margin 0: must be above zero"):
        two_one_sided(estimate(0), 0)


def test_letters_by_hand():
    # a differs from c and d, b from d: {a, b}, {b, c}, {c, d}.
    signs = letters("abcd", {("a", "c"), ("a", "d"), ("b", "d")})
    assert signs == {"a": "a", "b": "ab", "c": "bc", "d": "c"}


def test_without_a_difference_all_share_one_letter():
    assert letters(["x", "y", "z"], []) == {"x": "a", "y": "a", "z": "a"}
    assert letters([], []) == {}


def test_where_all_differ_each_has_another_letter_in_the_order_given():
    assert letters(["x", "y", "z"], set(combinations("xyz", 2))) == {"x": "a", "y": "b", "z": "c"}


def test_sixty_names_that_all_differ_get_their_letters_in_no_time():
    # In the order a set happens to have, the columns in between would be more than a billion.
    names = [f"v{i}" for i in range(60)]
    signs = letters(names, set(combinations(names, 2)))
    assert len(set(signs.values())) == 60
    assert (signs["v0"], signs["v26"], signs["v59"]) == ("a", "A", "(60)")


@pytest.mark.parametrize("seed", range(20))
def test_two_names_share_a_letter_exactly_where_they_were_not_shown_to_differ(seed):
    rng, names = np.random.default_rng(seed), list("pqrstuv")
    different = {pair for pair in combinations(names, 2) if rng.random() < 0.4}
    signs = letters(names, different)
    for a, b in combinations(names, 2):
        assert ((a, b) in different) == (not set(signs[a]) & set(signs[b]))
    shuffled = [(b, a) for a, b in sorted(different, reverse=True)]
    assert letters(names, shuffled) == signs


@pytest.mark.parametrize(("prompts", "p"), [(12, 0.98**12), (264, 0.98**264)])
def test_without_any_difference_equivalence_is_as_sure_as_the_number_of_prompts_makes_it(prompts, p):
    same = np.full((3, prompts), 0.5)
    estimate = crossed_difference([same], [same])
    # Were the difference 0.02, a prompt would differ with a chance of 0.02 at least, for no prompt's difference is above 1.
    assert two_one_sided(estimate, 0.02, largest=1.0) == pytest.approx(p)
    assert two_one_sided(estimate, 0.02) == 1.0, "of rewards no bound is known"
    assert equivalences({"a": estimate}, 0.02, 1.0)["a"].shown() == (prompts == 264)
