"""The intervals of the controls hold the truth as often as they say; the full table is `python -m tests.stats.best_of_coverage`."""

import pytest

from tests.stats.best_of_coverage import coverage


@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize("levels", [3, 30])
def test_intervals_of_the_best_of_k_hold_the_truth(k, levels):
    # 600 repetitions: 0.93 to 0.97, and three standard errors of 0.009 beyond.
    assert 0.93 - 0.027 <= coverage(100, levels, k, 600) <= 0.97 + 0.027
