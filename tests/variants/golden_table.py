"""The table of all registered losses for the docs: laws kept, other projects' numbers matched, and what is not compared.

Run from the root of the checkout as `python -m tests.variants.golden_table PATH/losses.json`; prints Markdown.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dpobench.losses.registry import variants
from dpobench.testing import check
from tests.variants.golden import numbers
from tests.variants.golden_cases import (
    BRAIN,
    EXACT,
    EXCUSED,
    FAILED,
    LEFT_OUT,
    UNSEEN,
    UNTRIED,
    Compared,
    compared,
    read,
    tolerance,
)


def laws(name: str) -> str:
    """Laws kept of laws tried, and the names of those that are not."""
    tried = check(variants.get(name))
    broken = [law.name for law in tried if not law.passed]
    return f"{len(tried) - len(broken)} of {len(tried)}" + (f", not {', '.join(broken)}" if broken else "")


def largest(results: Sequence[Compared], *, gradient: bool) -> str:
    """Largest deviation over the cases in float64; over others, and marked so, where there are no such cases."""
    exact = [one for one in results if tolerance(one.case) <= EXACT]
    with_any = [one for one in exact or results if any(field.startswith("grad") == gradient for field in one.apart)]
    if not with_any:
        return "–"
    precision = "bfloat16" if results[0].case["id"] in BRAIN else "float32"
    return f"{max(one.worst(gradient=gradient) for one in with_any):.0e}" + ("" if exact else f" ({precision})")


def row(name: str, results: Sequence[Compared]) -> str:
    """A loss or a sum of losses: cases and numbers matched, largest deviations."""
    cases = len({one.case["id"] for one in results})
    recorded = [numbers(one.case[field]) for one in results for field in one.apart]
    values = sum(int(some.isfinite().sum()) for some in recorded)
    sizes = largest(results, gradient=False), largest(results, gradient=True)
    return f"| {name} | {cases} | {values} | {sizes[0]} | {sizes[1]} |"


def lines(golden: dict[str, Any]) -> Iterator[str]:
    """The table, line by line."""
    results = compared(golden)
    unmatched = [one.case["id"] for one in results if any(not by <= tolerance(one.case) for by in one.apart.values())]
    yield "| loss | laws kept | cases | numbers | largest deviation, value | gradient |"
    yield "|---|---|---|---|---|---|"
    for name in variants.names():
        mine = [one for one in results if one.reading.loss == name]
        yield row(f"{name} | {laws(name)}", mine)
    yield ""
    yield "| sum or identity | cases | numbers | largest deviation, value | gradient |"
    yield "|---|---|---|---|---|"
    for label in dict.fromkeys(one.reading.label for one in results if one.reading.label):
        yield row(label, [one for one in results if one.reading.label == label])
    yield ""
    matched = {one.case["id"] for one in results} - set(unmatched)
    yield f"{len(matched)} of {len(golden['cases'])} cases matched, {len(EXCUSED)} excused" + (
        f"; NOT MATCHED: {', '.join(sorted(set(unmatched)))}" if unmatched else "."
    )
    for title, reasons in (
        ("Excused", EXCUSED),
        (
            "Fields left out",
            {f"{case} ({field})": why for case, fields in LEFT_OUT.items() for field, why in fields.items()},
        ),
        ("Executions that failed", FAILED),
        ("Losses that no other project's numbers cover", UNSEEN),
        ("Parts that the recorded batch does not try", UNTRIED),
    ):
        yield ""
        yield f"{title}:"
        yield ""
        yield from (f"- `{name}`: {why}" for name, why in reasons.items())


def main(arguments: Sequence[str]) -> int:
    """Print the table of the recorded numbers in a file."""
    if len(arguments) != 1 or not Path(arguments[0]).is_file():
        sys.stderr.write("usage: python -m tests.variants.golden_table PATH/losses.json\n")
        return 2
    for line in lines(read(Path(arguments[0]))):
        sys.stdout.write(f"{line}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
