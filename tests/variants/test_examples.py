"""The example in each loss's docstring has the value it says."""

import doctest

import pytest

from dpobench.losses.registry import variants
from dpobench.testing import examples


def failures(function, names):
    """What the examples of a docstring gave instead, and how many examples there are."""
    (test,) = doctest.DocTestFinder(recurse=False).find(function, function.__name__, globs=dict(names))
    report = []
    doctest.DocTestRunner().run(test, out=report.append)
    return "".join(report), len(test.examples)


@pytest.mark.parametrize("name", variants.names())
def test_the_example_of_a_loss_has_the_value_it_says(name):
    function = variants.get(name).function
    report, count = failures(function, {name: function})
    assert report == ""
    assert count >= 2, f"{name} has no example"


def test_the_example_of_example_pairs_holds():
    report, count = failures(examples.example_pairs, {"example_pairs": examples.example_pairs})
    assert report == ""
    assert count == 2


def test_a_wrong_value_would_be_seen():
    def doubled(number):
        """Twice a number.

        Example:
            >>> doubled(2)
            5
        """
        return 2 * number

    report, _ = failures(doubled, {"doubled": doubled})
    assert "Got:\n    4" in report
