import ast
import importlib
import inspect
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from dpobench.stats.crossed import crossed_mean, share_interval
from dpobench.stats.intervals import bootstrap_mean, paired_bootstrap, t_mean, wilson

ROOT = Path(__file__).resolve().parents[2]
# What holds an interval: functions that return one of these give the report something to print.
HOLDERS = ("Estimate", "CalibrationError", "Ellipse", "Stratum", "Tournament", "Tradeoff", "tuple[float, float, float]")


def interval_makers():
    """Names of the functions of the statistics, used in the report, that return intervals."""
    found = set()
    for file in sorted((ROOT / "dpobench" / "report").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dpobench.stats"):
                module = importlib.import_module(node.module)
                functions = [getattr(module, name.name) for name in node.names]
                found |= {
                    f.__name__
                    for f in functions
                    if inspect.isfunction(f) and any(h in str(inspect.signature(f).return_annotation) for h in HOLDERS)
                }
    return sorted(found)


def test_the_guide_names_what_shows_the_coverage_of_every_interval_of_the_report():
    guide = (ROOT / "docs" / "statistics.md").read_text(encoding="utf-8")
    rows = [row for row in guide.split("## Every interval")[1].split("\n## ")[0].splitlines() if row.startswith("|")]
    makers = interval_makers()
    assert len(makers) > 12
    assert [name for name in makers if not any(f"`{name}`" in row for row in rows)] == []


def test_wilson_of_five_in_ten_is_the_textbook_interval():
    # centre (0.5 + z^2/20) / (1 + z^2/10) = 0.5; half = z sqrt(0.025 + z^2/400) / (1 + z^2/10), z = 1.959964
    z = 1.959963984540054
    half = z * np.sqrt(0.025 + z**2 / 400) / (1 + z**2 / 10)
    assert wilson(5, 10) == pytest.approx((0.5 - half, 0.5 + half), abs=1e-12)


def test_a_share_of_one_still_has_a_lower_end():
    low, high = wilson(40, 40)
    assert high == 1.0
    assert low == pytest.approx(40 / (40 + 1.959964**2), abs=1e-6)


def test_the_t_interval_is_scipys():
    values = [0.1, 0.4, 0.2, 0.9, 0.7]
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert t_mean(values) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_the_bootstrap_is_the_same_for_the_same_seed_and_near_the_t_interval():
    values = np.random.default_rng(1).normal(0.3, 1.0, 400)
    first, second = bootstrap_mean(values, seed=4), bootstrap_mean(values, seed=4)
    assert first == second
    assert first != bootstrap_mean(values, seed=5)
    assert first == pytest.approx(t_mean(values), abs=0.02)


def test_rows_of_one_cluster_are_drawn_together():
    units = np.random.default_rng(2).normal(0, 1, 100)
    repeated, clusters = np.repeat(units, 9), np.repeat(np.arange(100), 9)
    width = np.diff(bootstrap_mean(repeated, clusters))[0]
    assert width == pytest.approx(np.diff(bootstrap_mean(units))[0], rel=0.1)
    assert width > 2.5 * np.diff(bootstrap_mean(repeated))[0]


def test_pairing_takes_out_what_both_share():
    rng = np.random.default_rng(3)
    shared = rng.normal(0, 5, 200)
    low, high = paired_bootstrap(shared + rng.normal(0.5, 0.1, 200), shared + rng.normal(0, 0.1, 200))
    assert 0.45 < low < 0.5 < high < 0.55


def test_equal_values_have_a_bootstrap_interval_without_width():
    assert bootstrap_mean([2.0, 2.0, 2.0]) == (2.0, 2.0)


def test_the_share_interval_of_one_seed_is_wilsons_with_students_quantile():
    values = np.array([[1.0] * 30 + [0.0] * 10])
    found = share_interval(crossed_mean([values]))
    squared = stats.t.ppf(0.975, 39) ** 2 / 39  # the variance has the divisor n - 1, so the size is worth n - 1
    middle = (0.75 + squared / 2) / (1 + squared)
    half = np.sqrt(squared * 0.75 * 0.25 + squared**2 / 4) / (1 + squared)
    assert (found.low, found.high) == pytest.approx((middle - half, middle + half), abs=1e-12)
    assert (found.low, found.high) == pytest.approx(wilson(30, 40), abs=0.01)


def test_the_share_interval_stays_in_zero_to_one_and_has_width_at_the_end():
    found = share_interval(crossed_mean([np.ones((3, 50))]))
    assert found.high == 1.0
    assert 0.9 < found.low < 0.95


def test_the_reference_against_itself_is_exact():
    found = share_interval(crossed_mean([np.full((1, 50), 0.5)]))
    assert (found.low, found.value, found.high) == (0.5, 0.5, 0.5)
