import ast
import importlib
import inspect
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from dpobench.stats.crossed import crossed_mean, share_interval

ROOT = Path(__file__).resolve().parents[2]
# What holds an interval: functions that return one of these give the report something to print.
HOLDERS = ("Estimate", "CalibrationError", "Ellipse", "Stratum", "Tournament", "Tradeoff", "tuple[float, float, float]")


def interval_makers():
    """Names of the functions of the statistics, used in the report, that return intervals."""
    names = set()
    for file in sorted((ROOT / "dpobench" / "report").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dpobench.stats"):
                module = importlib.import_module(node.module)
                functions = [getattr(module, name.name) for name in node.names]
                names |= {
                    f.__name__
                    for f in functions
                    if inspect.isfunction(f) and any(h in str(inspect.signature(f).return_annotation) for h in HOLDERS)
                }
    return sorted(names)


def test_the_guide_names_what_shows_the_coverage_of_every_interval_of_the_report():
    guide = (ROOT / "docs" / "statistics.md").read_text(encoding="utf-8")
    rows = [row for row in guide.split("## Every interval")[1].split("\n## ")[0].splitlines() if row.startswith("|")]
    makers = interval_makers()
    assert len(makers) > 12
    assert [name for name in makers if not any(f"`{name}`" in row for row in rows)] == []


def test_the_share_interval_of_one_seed_is_wilsons_with_students_quantile():
    values = np.array([[1.0] * 30 + [0.0] * 10])
    estimate = share_interval(crossed_mean([values]))
    squared = stats.t.ppf(0.975, 39) ** 2 / 39  # the variance has the divisor n - 1, so the size is worth n - 1
    middle = (0.75 + squared / 2) / (1 + squared)
    half = np.sqrt(squared * 0.75 * 0.25 + squared**2 / 4) / (1 + squared)
    assert (estimate.low, estimate.high) == pytest.approx((middle - half, middle + half), abs=1e-12)
    wilson = stats.binomtest(30, 40).proportion_ci(0.95, method="wilson")
    assert (estimate.low, estimate.high) == pytest.approx((wilson.low, wilson.high), abs=0.01)


def test_the_share_interval_stays_in_zero_to_one_and_has_width_at_the_end():
    estimate = share_interval(crossed_mean([np.ones((3, 50))]))
    assert estimate.high == 1.0
    assert 0.9 < estimate.low < 0.95


def test_the_reference_against_itself_is_exact():
    estimate = share_interval(crossed_mean([np.full((1, 50), 0.5)]))
    assert (estimate.low, estimate.value, estimate.high) == (0.5, 0.5, 0.5)
