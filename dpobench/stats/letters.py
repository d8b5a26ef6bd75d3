"""Compact letters: two names that share a letter were not shown to differ."""

import string
from collections.abc import Collection, Sequence


def letters(names: Sequence[str], different: Collection[tuple[str, str]]) -> dict[str, str]:
    """Give each name its letters.

    Args:
        names: in the order the letters are to run, usually best first.
        different: pairs shown to differ, in either order.

    Returns: for each name its letters; a and b share one exactly where (a, b) is not among the different.

    References: Piepho 2004, https://doi.org/10.1198/1061860043515 (insert and absorb).
    """
    columns: list[frozenset[str]] = [frozenset(names)] if names else []
    place = {name: i for i, name in enumerate(names)}
    # In the order of the names the columns in between stay as few as the letters; in any order they may double with each pair.
    for first, second in sorted(different, key=lambda pair: sorted(place[name] for name in pair)):
        split = []
        for column in columns:
            split += [column - {first}, column - {second}] if {first, second} <= column else [column]
        # A column within another says nothing that the other does not.
        unique = list(dict.fromkeys(split))
        columns = [column for column in unique if not any(column < other for other in unique)]
    columns.sort(key=lambda column: sorted(place[name] for name in column))
    return {name: "".join(_letter(i) for i, column in enumerate(columns) if name in column) for name in names}


def _letter(number: int) -> str:
    """One of a to z, then A to Z, then a number in brackets."""
    known = string.ascii_letters
    return known[number] if number < len(known) else f"({number + 1})"
