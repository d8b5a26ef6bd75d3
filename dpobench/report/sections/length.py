"""Whether a variant wins because it writes more."""

import pandas as pd

from dpobench.analysis.findings import TEST, Configuration, Findings, put
from dpobench.analysis.results import REFERENCE, Array
from dpobench.report.section import Section
from dpobench.report.table import Column, Row, Table, number
from dpobench.stats.crossed import Estimate
from dpobench.stats.length import by_quintile, difficulty, equal_length, length_controlled

FEWEST, RESAMPLES = 24, 500


def section(f: Findings) -> Section | None:
    """Length-controlled win-rate, win-rate at equal length, and by fifth of the length difference."""
    controlled = length_controlled_of(f)
    if not controlled:
        return None
    return Section("length", "Length control", [_controlled(f, controlled), _quintiles(f, list(controlled))])


def length_controlled_of(f: Findings) -> dict[str, Estimate]:
    """Win-rate at equal length of each variant's selected cell, against the reference, on the test prompts.

    Returns: by variant; empty where no verdicts against the reference or no lengths are there.
    """
    return f.once("length controlled", lambda: _at_equal_length(f))


def _at_equal_length(f: Findings) -> dict[str, Estimate]:
    cells = {c.key: measured for c in f.configurations if (measured := _measured(f, c)) is not None}
    shared = sorted(set.intersection(*(set(measured[0].columns) for measured in cells.values()))) if cells else []
    if len(shared) < FEWEST:
        return {}
    verdicts = [win[shared].to_numpy(dtype=float) for win, _, _ in cells.values()]
    differences = [_difference(lengths[shared], base[shared]) for _, lengths, base in cells.values()]
    hard = dict(zip(cells, difficulty(verdicts, differences), strict=True))
    by_key = dict(zip(cells, zip(verdicts, differences, strict=True), strict=True))
    return {
        variant: length_controlled(*by_key[c.key], hard[c.key], resamples=RESAMPLES)
        for variant, c in f.chosen.items()
        if c.key in cells
    }


def _measured(f: Findings, c: Configuration) -> tuple[pd.DataFrame, pd.DataFrame, pd.Series] | None:
    """Verdicts against the reference, lengths of the answers and of the reference's, on the same test prompts."""
    if f.headline is None or f.length is None or not c.done or f.results.metrics[f.headline].unit != "share":
        return None
    win = f.results.table(f.headline, c.ids, REFERENCE, TEST)
    long = f.results.table(f.length, [*c.ids, REFERENCE], None, TEST)
    on = [prompt for prompt in win.columns if prompt in long.columns]
    return (win[on], long.loc[c.ids, on], long.loc[REFERENCE, on]) if len(on) >= FEWEST else None


def _difference(lengths: pd.DataFrame, reference: pd.Series) -> Array:
    difference: Array = lengths.to_numpy(dtype=float) - reference.to_numpy(dtype=float)
    return difference


def _controlled(f: Findings, controlled: dict[str, Estimate]) -> Table:
    rows = []
    for variant, estimate in controlled.items():
        c = f.chosen[variant]
        measured = _measured(f, c)
        assert measured is not None
        win, lengths, base = measured
        level = equal_length(win.to_numpy(dtype=float), lengths.to_numpy(dtype=float), base.to_numpy(dtype=float))
        row: Row = {"variant": variant, "beta": f.label(c)}
        plain = f.estimate(c.ids, f.headline)
        put(row, "win_rate", plain)
        put(row, "length_controlled", estimate)
        row["change"] = estimate.value - plain.value if plain is not None else None
        put(row, "equal_length", level.win_rate)
        row |= {"equal_pairs": level.pairs, "pairs": int(win.size)}
        rows.append(row | {"n_prompts": estimate.n_prompts, "seeds": estimate.seeds})
    columns = [
        Column("Variant", "variant"),
        Column("β", "beta"),
        Column(f.results.label(f.headline or ""), "win_rate", 3, interval=True),
        Column("Length-controlled", "length_controlled", 3, interval=True),
        Column("Change", "change", 3, signed=True),
        Column("Within 10 % of equal length", "equal_length", 3, interval=True),
        Column("of pairs", "equal_pairs", 0),
        Column("Prompts", "n_prompts", 0),
        Column("Seeds", "seeds", 0),
    ]
    note = (
        "Against the reference, on test prompts, selected cells. Length-controlled: logistic regression of the verdict on "
        "tanh(length difference / its standard deviation) and on the prompt's difficulty for the other cells, read at zero difference; the "
        "interval refits it in every resample of the prompts. It estimates the verdicts of a judge if length alone were changed, which "
        "no regression can prove; where a variant's answers are nearly all longer, it extrapolates. Draws are averaged per prompt. "
        "Pairs of equal length are picked by the answers themselves."
    )
    return Table("length_controlled", "Win-rate at equal length", pd.DataFrame(rows, dtype=object), columns, note)


def _quintiles(f: Findings, variants: list[str]) -> Table:
    rows = []
    for variant in variants:
        measured = _measured(f, f.chosen[variant])
        assert measured is not None
        win, lengths, base = measured
        row: Row = {"variant": variant, "beta": f.label(f.chosen[variant])}
        for place, stratum in enumerate(by_quintile(win.to_numpy(dtype=float), _difference(lengths, base)), 1):
            put(row, f"fifth_{place}", stratum.win_rate)
            row[f"range_{place}"] = f"{number(stratum.low, 0)} to {number(stratum.high, 0)}"
            row[f"pairs_{place}"] = stratum.pairs
        rows.append(row | {"n_prompts": win.shape[1], "seeds": len(win)})
    columns = [Column("Variant", "variant"), Column("β", "beta")]
    for place, name in enumerate(("shortest fifth", "second", "third", "fourth", "longest fifth"), 1):
        columns += [Column(name.capitalize(), f"fifth_{place}", 2, interval=True), Column("tokens", f"range_{place}")]
    columns += [Column("Prompts", "n_prompts", 0), Column("Seeds", "seeds", 0)]
    unit = f.results.metrics[f.length or ""].unit
    note = (
        f"Win-rate by fifth of the difference in length ({unit}, the variant's answer less the reference's, range after each). "
        "Equal differences stay in one fifth. A judge that only counts gives a staircase."
    )
    return Table("length_quintiles", "Win-rate by length difference", pd.DataFrame(rows, dtype=object), columns, note)
