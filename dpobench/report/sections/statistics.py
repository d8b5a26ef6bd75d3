"""How sure the results are: all pairs, equivalence to the control, where the error comes from, what the design can detect."""

from itertools import combinations

import pandas as pd

from dpobench.analysis.components import Measured, measured, selected_scores
from dpobench.analysis.findings import Findings, put
from dpobench.report.section import Section
from dpobench.report.table import Column, Row, Table, number
from dpobench.stats.compare import MARGIN, Equivalence, equivalences, holm, letters
from dpobench.stats.components import advice, alternatives
from dpobench.stats.crossed import Estimate, crossed_difference, share_difference
from dpobench.stats.power import smallest_effect


def section(f: Findings) -> Section | None:
    """All of it, where at least two variants were scored on the same prompts."""
    measurement = measured(f)
    if measurement is None:
        return None
    tables = [pairs(f), equivalence(f), variances(f, measurement), designs(f, measurement)]
    effect = detectable(f, measurement)
    return Section(
        "statistics",
        "How sure this is",
        tables,
        [effect, advice(measurement.parts, *measurement.design)],
        notes=[effect],
    )


def letters_of(f: Findings) -> dict[str, str]:
    """Letters of each scored variant, best first: those that share one were not shown to differ (all pairs, Holm)."""
    different = [pair for (pair, _), p in _adjusted(f).items() if p < f.results.alpha]
    return letters(list(selected_scores(f)), different)


def differences(f: Findings) -> dict[tuple[str, str], Estimate]:
    """All pairs, the better first, on the prompts that all of them have."""
    scores = selected_scores(f)
    return {
        (a, b): share_difference(d) if _share(f) else d
        for a, b in combinations(scores, 2)
        for d in [crossed_difference([scores[a]], [scores[b]])]
    }  # fmt: skip


def pairs(f: Findings) -> Table:
    """Every pair, p-values adjusted by Holm over all of them."""
    rows, signs = [], letters_of(f)
    for ((first, second), difference), p in _adjusted(f).items():
        row: Row = {"first": first, "second": second}
        put(row, "difference", difference)
        row |= {"p": difference.p, "p_adjusted": p, "first_letters": signs[first], "second_letters": signs[second]}
        row["significant"] = difference.level == "method" and p < f.results.alpha
        rows.append(row | {"n_prompts": difference.n_prompts, "seeds": difference.seeds, "level": difference.level})
    columns = [
        Column("Variant", "first", bold="significant"),
        Column("Letters", "first_letters"),
        Column("less", "second", bold="significant"),
        Column("Letters", "second_letters"),
        Column("Difference", "difference", 3, interval=True, signed=True, bold="significant"),
        Column("p (Holm)", "p_adjusted", 3, bold="significant"),
        Column("Level", "level"),
        Column("Prompts", "n_prompts", 0),
        Column("Seeds", "seeds", 0),
    ]
    note = (
        "Variants that share a letter were not shown to differ, which does not make them equal. P-values are adjusted over all pairs, "
        "so they may be larger than in the leaderboard, which compares with the control alone; intervals are not adjusted."
    )
    frame = pd.DataFrame(rows, dtype=object)
    return Table(
        "all_pairs", f"All pairs: {_label(f)}, best first", frame, columns, note, hidden=("significant",)
    )  # fmt: skip


def equivalence(f: Findings) -> Table:
    """Each variant against the control: is the difference within the margin?"""
    rows, compared = [], f.comparisons
    for variant, test in _equivalences(f).items():
        one = compared[variant]
        row: Row = {"variant": variant, "margin": test.margin, "difference": one.estimate}
        row |= {"difference_low": max(one.low, -1.0) if _share(f) else one.low}
        row |= {"difference_high": min(one.high, 1.0) if _share(f) else one.high}
        row |= {"p_difference": one.p_adjusted, "p_equivalence": test.p, "p_equivalence_adjusted": test.p_adjusted}
        row["verdict"] = test.verdict(one.p_adjusted, f.results.alpha)
        rows.append(row | {"n_prompts": one.n_prompts, "seeds": one.seeds, "level": one.level})
    columns = [
        Column("Variant", "variant"),
        Column(f"Difference to {f.results.control}", "difference", 3, interval=True, signed=True),
        Column("Margin", "margin"),
        Column("p, no difference (Holm)", "p_difference", 3),
        Column("p, not equivalent (Holm)", "p_equivalence_adjusted", 3),
        Column("Verdict", "verdict"),
        Column("Prompts", "n_prompts", 0),
        Column("Seeds", "seeds", 0),
    ]
    note = (
        "Two one-sided tests against the margin, Holm over the variants. Neither shown: the data allow both no difference and one "
        "larger than the margin."
    )
    return Table("equivalence", "Equivalence to the control", pd.DataFrame(rows, dtype=object), columns, note)


def variances(f: Findings, measurement: Measured) -> Table:
    """The parts of the error of a difference."""
    parts = measurement.parts.parts(*measurement.design)
    total = sum(parts.values())
    by_source = {
        "prompt x variant": measurement.parts.method,
        "seed": measurement.parts.seed,
        "residual": measurement.parts.residual,
    }
    common = {"n_prompts": measurement.prompts, "seeds": measurement.seeds, "variants": measurement.variants}
    rows: list[Row] = [
        {"what": "prompt, alike for all", "spread": measurement.parts.prompts**0.5, "share": 0.0} | common
    ]
    for name, variance in by_source.items():
        known = variance == variance and not (measurement.seeds < 2 and name == "residual")
        share = parts[name] / total if total and known else None
        rows.append({"what": name, "spread": variance**0.5 if known else None, "share": share} | common)
    columns = [
        Column("Source", "what"),
        Column("Standard deviation", "spread", 3),
        Column("Share of the squared error", "share", 2),
        Column("Variants", "variants", 0),
        Column("Prompts", "n_prompts", 0),
        Column("Seeds", "seeds", 0),
    ]
    note = (
        f"Of {_label(f)} at the selected cells, by the method of moments; a part that came out below zero is shown as zero. "
        "With few seeds the part of the seeds is itself uncertain: these numbers are for planning, and no test uses them."
    )
    return Table("variances", "Where the error comes from", pd.DataFrame(rows, dtype=object), columns, note)


def designs(f: Findings, measurement: Measured) -> Table:
    """What more seeds, prompts or answers would give."""
    rows = [
        {"design": other.change, "se": other.se, "trainings": other.trainings, "answers": other.answers}
        | {"n_prompts": other.prompts, "seeds": other.seeds}
        for other in alternatives(measurement.parts, *measurement.design)
    ]
    columns = [
        Column("Design", "design"),
        Column("Error of a difference", "se", 4),
        Column("Trainings, times", "trainings", 0),
        Column("Answers, times", "answers", 0),
        Column("Prompts", "n_prompts", 0),
        Column("Seeds", "seeds", 0),
    ]
    note = (
        f"Standard errors of a difference of two variants in {_label(f)}, predicted from the parts above. Answers per prompt are "
        "taken to lessen all of the residual, which is the best case."
    )
    return Table("designs", "What other designs would give", pd.DataFrame(rows, dtype=object), columns, note)


def detectable(f: Findings, measurement: Measured) -> str:
    """The smallest effect this design can detect, as a sentence."""
    compared, prompts = max(1, measurement.variants - 1), f"{measurement.prompts} test prompts"
    seeds = f"{measurement.seeds} seed{'s' if measurement.seeds > 1 else ''}"
    effect = smallest_effect(measurement.parts, *measurement.design, comparisons=compared, alpha=f.results.alpha)
    if effect == 0:
        return (
            f"No two variants differed in {_label(f)} on any of {prompts}, so nothing is known of the error: which difference "
            "this design could have shown is unknown. Add prompts and seeds."
        )
    if _share(f) and effect >= 1:
        return (
            f"Any difference in {_label(f)} at all could have been missed: {seeds} on {prompts} differ "
            "too much; add seeds."
        )
    whose = "methods" if measurement.seeds > 1 else "these checkpoints (one seed: not of the methods)"
    return (
        f"The smallest difference of {whose} that this design shows with a chance of 80 %: {number(effect, 3)} in {_label(f)} "
        f"({seeds}, {prompts}, {compared} tested against the control, "
        f"level {f.results.alpha:g} for all together). Smaller differences may be real and not be shown."
    )


def _adjusted(f: Findings) -> dict[tuple[tuple[str, str], Estimate], float]:
    compared = differences(f)
    return dict(zip(compared.items(), holm([d.p for d in compared.values()]), strict=True))


def verdict_of(f: Findings, variant: str) -> str:
    """The leaderboard's verdict on a variant, compared with the control: better, worse, equivalent, or no difference shown."""
    comparison, same = f.comparisons[variant], _equivalences(f).get(variant)
    verdict = comparison.verdict(f.direction, f.results.alpha)  # type: ignore[arg-type]
    if same is None or not same.shown(f.results.alpha) or comparison.p_adjusted < f.results.alpha:
        return verdict
    within = f"equivalent to {comparison.control} within {same.margin:g}"
    return within if comparison.level == "method" else f"{within} (this checkpoint only)"


def _equivalences(f: Findings) -> dict[str, Equivalence]:
    control = f.chosen.get(f.results.control or "")
    if control is None:
        return {}
    compared = {variant: f.difference(f.chosen[variant].ids, control.ids) for variant in f.comparisons}
    return equivalences({v: d for v, d in compared.items() if d is not None}, margin(f), 1.0 if _share(f) else None)


def margin(f: Findings) -> float:
    """The declared margin of equivalence, in the unit of the ranking metric."""
    return f.results.experiment.evaluation.margin or MARGIN


def _share(f: Findings) -> bool:
    return f.ranking is not None and f.results.metrics[f.ranking].unit == "share"


def _label(f: Findings) -> str:
    return f.results.label(f.ranking or "")
