"""The report's sentences: verdict, warnings, meaning and origin of the numbers."""

from collections.abc import Mapping, Sequence

from dpobench.analysis.findings import Findings
from dpobench.analysis.results import BENCHMARK, REFERENCE
from dpobench.artifacts.scores import ScoreSettings
from dpobench.report.table import interval, probability
from dpobench.report.text import UNEVEN
from dpobench.stats.compare import Comparison

# Nats a sequence: a policy this near to its reference has not changed.
STILL = 1e-3
UNEQUAL = "The variants had unequal numbers of trials: the best of more tries looks better by luck alone."


def verdict(f: Findings) -> str:
    """The result of the comparison, in one or two sentences."""
    if f.ranking is None or not f.chosen:
        return "Nothing can be ranked yet: no configuration has finished with scores on the selection prompts."
    control, label = f.results.control, f.results.label(f.ranking)
    if control not in f.chosen:
        return f"Nothing is compared: the control {control} has no eligible configuration."
    if not f.comparisons:
        alone = f.estimate(f.chosen[control].ids, f.ranking)
        shown = interval(alone.value, alone.low, alone.high, 3) if alone else "not measured"
        size = f" ({_size(alone.seeds, alone.n_prompts)})" if alone else ""
        return f"There is nothing to compare {control} with; at its selected β its {label} is {shown}{size}."
    compared = list(f.comparisons.values())
    sign = -1 if f.direction == "lower" else 1
    checkpoint = any(c.level != "method" for c in compared)
    significant = [c for c in compared if c.p_adjusted < f.results.alpha]
    better = [c for c in significant if sign * c.estimate > 0]
    worse = [c for c in significant if sign * c.estimate < 0]
    where = f"{label}, {'one checkpoint each, at its selected β' if checkpoint else 'at its selected β'}"
    size = _size(compared[0].seeds, compared[0].n_prompts)
    clauses = []
    if better:
        beat = "beat" if len(better) > 1 else "beats"
        clauses.append(f"{_names(better)} {beat} {control} on {where} ({_effects(better)}; {size})")
    else:
        top = max(compared, key=lambda c: sign * c.estimate)
        effect = f"{interval(top.estimate, top.low, top.high, 3, signed=True)}, {_p(top.p_adjusted)}"
        nearest = "" if top in worse else f"; the nearest is {top.variant} at {effect}"
        clauses.append(f"The data do not show that any variant beats {control} on {where} ({size}){nearest}")
    if worse:
        clauses.append(f"{_names(worse)} {'do' if len(worse) > 1 else 'does'} worse than {control} ({_effects(worse)})")
    tail = " With one seed this compares checkpoints, not methods: another seed may reverse it." if checkpoint else ""
    return "; ".join(clauses) + "." + tail


def _names(comparisons: Sequence[Comparison]) -> str:
    names = [c.variant for c in comparisons]
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def _effects(comparisons: Sequence[Comparison]) -> str:
    parts = [f"{interval(c.estimate, c.low, c.high, 3, signed=True)}, {_p(c.p_adjusted)}" for c in comparisons]
    named = [f"{c.variant} {part}" for c, part in zip(comparisons, parts, strict=True)]
    return parts[0] if len(parts) == 1 else "; ".join(named)


def _p(value: float) -> str:
    shown = probability(value)
    return f"adjusted p {shown}" if shown.startswith("<") else f"adjusted p = {shown}"


def _size(seeds: int, prompts: int) -> str:
    return f"{seeds} seed{'s' if seeds != 1 else ''}, {prompts:,} test prompts"


def notes(f: Findings) -> list[str]:
    """What a reader must know before trusting the table."""
    sentences = []
    if f.headline is None and f.preference is not None:
        sentences.append(
            f"There was no judge, so there is no win-rate: variants are ranked, and their β is selected, by "
            f"{f.results.label(f.preference)} on held-out pairs."
        )
    if any(len(c.done) == 1 for c in f.chosen.values()):
        sentences.append(
            "Rows with one seed are checkpoint-level: their intervals cover prompts, not another training of the same method."
        )
    sentences += _harm(f)
    broken = sum(c.broken for c in f.configurations)
    if broken:
        sentences.append(
            f"{broken} of {len(f.results.runs)} runs diverged or failed; they stay in the grid with their reason."
        )
    missing = sum(c.count("missing") for c in f.configurations)
    if missing:
        sentences.append(
            f"{missing} of {len(f.results.runs)} planned runs have not finished: this report is preliminary."
        )
    incomplete = [v for v, c in f.chosen.items() if len(c.done) < len(c.runs)]
    if incomplete:
        sentences.append(
            f"Selected although seeds are missing, because no configuration is complete: {', '.join(incomplete)}."
        )
    shared = set.intersection(*(set(f.results.given(v)) for v in f.variants)) if f.variants else set()
    more = {v: [name for name in f.results.given(v) if name not in shared] for v in f.variants}
    if uneven := [f"{v} ({', '.join(names)})" for v, names in more.items() if names]:
        sentences.append(f"{UNEVEN}: {'; '.join(uneven)}. Their gain may come from the information, not from the loss.")
    recipe = f.results.experiment.recipe
    if recipe.reference_every:
        sentences.append(
            f"The reference moved: every {recipe.reference_every} steps it took {recipe.reference_mix:.0%} of the policy. "
            "Log-ratios, margins and distances are measured from the start policy all the same."
        )
    if f.unequal_trials:
        sentences.append(UNEQUAL)
    edge = [v for v, c in f.chosen.items() if _at_edge(f, v, c.beta)]
    if edge:
        sentences.append(
            f"The selected β lies at an end of the grid for {', '.join(edge)}: a wider grid may have a better one."
        )
    for left_out in f.results.plan.left_out:
        sentences.append(f"Left out: {left_out.evaluator} ({left_out.why}).")
    if f.results.not_finite:
        lost = ", ".join(f"{f.results.label(name)} ({count:,})" for name, count in f.results.not_finite.items())
        sentences.append(
            f"Scores that are no finite numbers were left out: {lost}. The results of these metrics are of the other prompts only, "
            "and look better than they are."
        )
    if f.results.unplanned:
        sentences.append(f"{f.results.unplanned} run folders belong to earlier plans and are not reported.")
    return sentences


def alarms(f: Findings) -> list[str]:
    """What forbids to read the runs as one comparison."""
    versions = sorted({run.record.harness for run in f.results.runs if run.record.harness is not None})
    if len(versions) < 2:
        return []
    whose = {v: [run.id for run in f.results.runs if run.record.harness == v] for v in versions}
    each = "; ".join(f"version {v}: {', '.join(ids[:3])}{' and others' * (len(ids) > 3)}" for v, ids in whose.items())
    return [
        f"The runs were trained by {len(versions)} versions of the harness, which do not give the same numbers ({each}): differences "
        "between them may be the harness's, not the losses'. Train them again with one version."
    ]


def _at_edge(f: Findings, variant: str, beta: object) -> bool:
    betas = {c.beta for c in f.configurations if c.variant == variant and isinstance(c.beta, (int, float))}
    return len(betas) > 2 and beta in (min(betas), max(betas))


def _harm(f: Findings) -> list[str]:
    """Variants that are worse than the reference they started from, and runs that did not change the policy."""
    sentences = []
    base = f.estimate([REFERENCE], f.ranking)
    estimates = {v: f.estimate(c.ids, f.ranking) for v, c in f.chosen.items()}
    if base is not None and f.direction in ("higher", "lower"):
        sign = 1 if f.direction == "higher" else -1
        worse = [v for v, e in estimates.items() if e and sign * (e.high if sign > 0 else e.low) < sign * base.value]
        if worse:
            sentences.append(
                f"Worse than the reference they started from, on these prompts: {', '.join(worse)}. At these settings training did harm."
            )
    far = [f.estimate(c.ids, f.distance) for c in f.configurations if c.done] if f.distance else []
    if far and all(e is not None and abs(e.value) < STILL for e in far):
        sentences.append(
            f"No run left the reference (the distance is below {STILL:g} everywhere): the learning rate is too small, or there were too "
            "few steps; nothing can be learnt about the losses here."
        )
    return sentences


def glossary(f: Findings) -> list[tuple[str, str]]:
    """The meaning of the numbers that are in the report."""
    results = f.results
    entries = [
        (
            "Interval",
            "95 %, over prompts and, with two seeds or more, over seeds as well (crossed; docs/statistics.md)"
            ". With one seed it holds for that checkpoint only.",
        ),
        (
            "Selection and test",
            "Held-out prompts are split once, by hash. The selection half picks β for each variant: the best mean, but whatever lies "
            "within one standard error of it counts as equal, and among equals the one closest to the reference is taken. The test "
            "half is what is reported.",
        ),
        (
            "Control",
            f"{results.control}: the variant the others are tested against, on the same prompts, p-values adjusted by Holm. Bold means "
            f"an adjusted p below {results.alpha:g} with two seeds or more, and nothing else.",
        ),
        ("Reference", "the model every run starts from and is regularised towards; it is scored like a variant."),
        (
            "β",
            "the regularisation strength of a loss. Its unit differs between variants (see the trials), so that equal numbers do not "
            "mean equal regularisation.",
        ),
    ]
    if f.headline:
        meaning = (
            "share of test prompts on which the judge prefers the answer to the reference's; a tie counts one half."
        )
        entries.append((results.label(f.headline), meaning))
    if f.distance:
        unit = results.metrics[f.distance].unit
        entries.append(
            (
                results.label(f.distance),
                f"distance of the policy from the reference, in {unit}, on the policy's answers.",
            )
        )
    if f.preference:
        meaning = "share of held-out pairs whose chosen answer the policy raised above the rejected one, relative to the reference."
        entries.append((results.label(f.preference), meaning))
    if results.of_role(BENCHMARK):
        entries.append(
            (
                "Benchmark delta",
                "score less the reference's on the same documents, averaged over tasks of equal weight.",
            )
        )
    entries.append(("Margin", "log-ratio of the chosen answer less that of the rejected one, in nats, before β."))
    return entries


def provenance(f: Findings) -> list[tuple[str, str]]:
    """Origin of the numbers; where runs differ, all values are listed."""
    known = [run.record.provenance.model_dump() for run in f.results.runs if run.record.provenance]
    rows = [
        ("experiment", f.results.experiment.name),
        ("reference", f.results.plan.reference),
    ]
    for key in sorted({key for entry in known for key in entry if key != "versions"}):
        rows.append((key.replace("_", " "), ", ".join(sorted({str(entry.get(key)) for entry in known}))))
    versions = sorted(
        {f"{name} {version}" for entry in known for name, version in (entry.get("versions") or {}).items()}
    )
    rows.append(("versions", ", ".join(versions)))
    rows.append(("seeds", ", ".join(str(seed) for seed in sorted({run.seed for run in f.results.runs}))))
    rows += [("decoding", _decoding(f)), ("judge", _judge(f))]
    rows += [(f"settings of {name}", _settings(settings)) for name, settings in sorted(f.results.settings.items())]
    recipes = {
        ", ".join(f"{k}={v}" for k, v in sorted(r.record.recipe.model_dump().items()) if k != "learning_rate")
        for r in f.results.runs
        if r.record.recipe
    }
    rows += [("recipe", text) for text in sorted(recipes)]
    return [(key, value) for key, value in rows if value]


def _decoding(f: Findings) -> str:
    """How answers were drawn, alike for every checkpoint."""
    drawn = f.results.experiment.evaluation
    if drawn.max_new_tokens is None:
        return ""
    shown = f"temperature {drawn.temperature:g}, the whole distribution (top_p 1, top_k 0), at most {drawn.max_new_tokens} tokens"
    shown += f", {drawn.draws} to a prompt, {drawn.batch} at a time"
    return f"{shown}; {drawn.pool} further ones of the reference" if drawn.pool else shown


def _judge(f: Findings) -> str:
    """Which judge, with its plain settings."""
    scored = f.results.experiment.evaluation
    plain = {k: v for k, v in scored.judge_settings.items() if isinstance(v, (str, int, float))}
    return ", ".join([scored.judge, *_pairs(plain)]) if scored.judge else ""


def _settings(settings: ScoreSettings) -> str:
    """Settings of an evaluator, its code and the content of what it needed."""
    needs = [f"{name} {key}" for name, key in sorted(settings.needs.items())]
    return ", ".join([*_pairs(settings.arguments), f"code {settings.code}", *needs])


def _pairs(values: Mapping[str, object]) -> list[str]:
    return [f"{key}={value}" for key, value in sorted(values.items())]
