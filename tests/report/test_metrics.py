"""The names of metrics that the report reads: declared once, given by some evaluator, and used."""

import ast
from pathlib import Path

import dpobench
from dpobench.artifacts.scores import Metric
from dpobench.evaluation.registry import evaluators
from dpobench.report import metrics

ENGINE = Path(dpobench.__file__).parent
# What the shipped evaluators give and no section reads by name: the section of further metrics shows it.
FURTHER = {
    "acc_norm", "bits_per_byte", "byte_perplexity", "mean_margin", "objective_reward", "word_perplexity", "words",
}  # fmt: skip
BY_ROLE = {"headline", "distance", "benchmark", "preference", "length"}


def given() -> dict[str, Metric]:
    """What the shipped evaluators declare, by name; names known only at run time are none."""
    named = {name: metric for one in evaluators.names() for name, metric in declared(one).items()}
    return {name: metric for name, metric in named.items() if name != "*"}


def declared(evaluator: str) -> dict[str, Metric]:
    return dict(evaluators.get(evaluator).spec.metrics)


def constants() -> dict[str, str]:
    """Names in `report/metrics.py` that stand for a metric, with the metric."""
    return {name: value for name, value in vars(metrics).items() if name.isupper() and value in metrics.names()}


def used(name: str) -> bool:
    """Whether a module of the report imports a name from `report/metrics.py` and uses it."""
    return any(name in imported_from_metrics(file) for file in (ENGINE / "report").rglob("*.py"))


def imported_from_metrics(file: Path) -> set[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    imported = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "dpobench.report.metrics"
        for alias in node.names
    }
    loaded = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    return imported & loaded


def test_every_metric_that_is_read_by_name_is_given_by_an_evaluator():
    assert metrics.names() <= set(given())


def test_every_metric_that_an_evaluator_gives_is_read_or_left_to_the_further_ones():
    distance = next(name for name, metric in given().items() if metric.role == "distance")
    companions = {f"{distance}_{suffix}" for suffix in metrics.COMPANIONS}
    by_role = {name for name, metric in given().items() if metric.role in BY_ROLE}
    assert companions <= set(given())
    assert set(given()) - metrics.names() - companions - by_role == FURTHER


def test_every_declared_name_is_read_somewhere():
    below = (ENGINE / "analysis" / "documents.py").read_text(encoding="utf-8")
    unread = {name for name, metric in constants().items() if not used(name) and f'"{metric}"' not in below}
    assert unread == set()
    assert set(constants().values()) == metrics.names()


def test_no_module_of_the_report_reads_a_metric_that_is_not_declared():
    readers = ("table", "pairs", "groups", "estimate", "difference")
    literal = []
    for file in (ENGINE / "report").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in readers:
                strings = {one.value for one in node.args if isinstance(one, ast.Constant)}
                literal += [f"{file.name}:{node.lineno} {name}" for name in strings & set(given())]
    assert literal == []
