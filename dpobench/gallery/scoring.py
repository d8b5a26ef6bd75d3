"""The evaluators and the judges on show: a list of each, and a portrait."""

import shutil
from collections.abc import Iterator
from importlib.metadata import EntryPoint

from dpobench.errors import DpobenchError
from dpobench.evaluation.registry import EvaluatorRegistry, JudgeRegistry
from dpobench.evaluation.spec import Evaluator, EvaluatorSpec, Judge
from dpobench.gallery.lines import fitted, parameters, short_path
from dpobench.gallery.source import Source, read

AnyRegistry = EvaluatorRegistry | JudgeRegistry
_DIRECTIONS = {"higher": "higher is better", "lower": "lower is better", "none": "neither direction is better"}


def listing(registry: AnyRegistry, width: int | None = None) -> list[str]:
    """One line a plugin, and what could not be read; files are read as syntax trees, and nothing is imported.

    Args:
        registry: the evaluators, or the judges.
        width: characters of a line; those of the terminal, but from 120 to 160, if None.
    """
    width = width or min(160, max(120, shutil.get_terminal_size((160, 24)).columns))
    judges = registry.kind == "judge"
    rows = [("judge", "judges", "settings") if judges else ("evaluator", "needs", "scores")]
    texts, unreadable = ["judges by" if judges else "measures"], []
    for name, origin in sorted(registry.sources().items()):
        try:
            source = (
                _installed(registry, name) if isinstance(origin, EntryPoint) else read(name, origin, registry.decorator)
            )
        except DpobenchError as error:
            unreadable.append(f"not readable: {error}")
            continue
        rows.append(_judge_cells(source) if judges else _evaluator_cells(source))
        texts.append(source.doc)
    lines = fitted([(*cells, text) for cells, text in zip(rows, texts, strict=True)], width)
    unreadable += [f"not readable: {file.name} {why}" for file, why in registry.broken.items()]
    return [*lines, "", f"{len(rows) - 1} {registry.kind}s", *unreadable]


def _installed(registry: AnyRegistry, name: str) -> Source:
    """What is declared by a plugin of an installed package, which is imported."""
    plugin = registry.get(name)
    spec = plugin.spec
    if isinstance(spec, EvaluatorSpec):
        declared: dict[str, object] = {
            "needs": spec.needs,
            "reference_only": spec.reference_only,
            "within": spec.within,
        }
    else:
        declared = {"pointwise": spec.pointwise}
    defaults = {parameter.name: parameter.default for parameter in plugin.parameters.values()}
    return Source(name, plugin.doc.partition("\n")[0], declared, defaults)


def _evaluator_cells(source: Source) -> tuple[str, str, str]:
    reference_only, within = source.declared.get("reference_only") is True, source.declared.get("within") is True
    scores = "the reference" if reference_only else "checkpoints, also within a training" if within else "checkpoints"
    return source.name, ", ".join(source.names("needs")) or "-", scores


def _judge_cells(source: Source) -> tuple[str, str, str]:
    kind = "one answer at a time" if source.declared.get("pointwise") is True else "two answers"
    return source.name, kind, ", ".join(source.defaults) or "-"


def portrait(plugin: Evaluator | Judge) -> list[str]:
    """Everything that a plugin declares, its settings and its docstring."""
    about = _of_evaluator(plugin) if isinstance(plugin, Evaluator) else _of_judge(plugin)
    settings = list(parameters(list(plugin.parameters.values()))) or ["none"]
    lines = [plugin.name, f"  file      {short_path(plugin.file)}", *about, "", "Settings"]
    return [*lines, *(f"  {line}" for line in settings), "", plugin.doc]


def _of_evaluator(evaluator: Evaluator) -> Iterator[str]:
    spec = evaluator.spec
    scored = "the reference alone" if spec.reference_only else "every checkpoint"
    yield f"  needs     {', '.join(spec.needs) or 'prompts and answers alone'}"
    yield f"  scores    {scored}{', and those within a training' if spec.within else ''}"
    yield from ("", "Metrics")
    rows = [
        (name, metric.unit, _DIRECTIONS.get(metric.better, metric.better), metric.role, metric.label)
        for name, metric in spec.metrics.items()
    ]
    yield from (f"  {line}" for line in fitted(rows, 160))
    if spec.at_reference:
        values = ", ".join(f"{name} = {value:g}" for name, value in spec.at_reference.items())
        yield f"  the reference against itself: {values}"


def _of_judge(judge: Judge) -> Iterator[str]:
    spec = judge.spec
    yield f"  judges    {'one answer at a time' if spec.pointwise else 'two answers, shown in both orders'}"
    yield f"  verdicts  {'the same every time' if spec.deterministic else 'may differ from time to time'}"
    if spec.check is not None:
        yield "  check     its settings are tried before anything is computed"
    if spec.estimate is not None:
        yield "  estimate  `dpobench run --dry-run` says what its verdicts would cost"
