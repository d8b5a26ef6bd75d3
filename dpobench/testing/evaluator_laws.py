"""The laws of evaluators: each a function from a probed evaluator to the reason why it is broken, empty where it holds."""

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import get_args

import numpy as np
import pandas as pd
import torch

from dpobench.artifacts.scores import ANY_NAME, Metric, Role
from dpobench.artifacts.scores import check as check_table
from dpobench.errors import DpobenchError, PluginRefused, UnknownName, UserError
from dpobench.evaluation.heldout import HeldOut
from dpobench.evaluation.score import random_state
from dpobench.evaluation.spec import Evaluator
from dpobench.models.checkpoint import Checkpoint
from dpobench.plugins.plugin import Settings
from dpobench.testing import evaluator_inputs
from dpobench.testing.evaluator_inputs import Situation, held_out, situations
from dpobench.testing.law import Law, in_turn, meaning

# Another order of the prompts is another padding of the batches, hence other rounding.
ROUNDING = 1e-4


def tried(evaluator: Evaluator, settings: Settings) -> Iterator[Law]:
    """Try every law of an evaluator.

    Args:
        evaluator: the evaluator.
        settings: those that differ from the defaults.
    """
    arguments = evaluator.arguments(settings)
    broken = declaration(evaluator)
    yield Law("declaration", not broken, broken, meaning(declaration))
    if broken:
        return
    with evaluator_inputs.checkpoints() as both:
        yield from in_turn(LAWS, EvaluatorProbe(evaluator, arguments, both))


class EvaluatorProbe:
    """An evaluator to be called on a small world.

    Args:
        evaluator: the evaluator.
        arguments: all its settings.
        both: the policy and the reference.
    """

    def __init__(self, evaluator: Evaluator, arguments: Settings, both: tuple[Checkpoint, Checkpoint]) -> None:
        self.evaluator, self.arguments = evaluator, arguments
        self.spec = evaluator.spec
        self.situations = list(situations(self.spec.needs, self.spec.reference_only, both))
        self.pairs = evaluator_inputs.pairs(both[1])

    def inputs(self, situation: Situation, *, reverse: bool = False) -> HeldOut:
        """Fresh inputs of a situation."""
        return held_out(situation, self.pairs, reverse=reverse)

    def call(self, situation: Situation, inputs: HeldOut) -> pd.DataFrame:
        """The evaluator's table.

        Raises:
            PluginRefused: it raises.
        """
        try:
            with random_state(0):
                table = self.evaluator.function(situation.checkpoint, inputs, **self.arguments)
        except Exception as error:
            raise PluginRefused(f"{situation.words} it raises {type(error).__name__}: {error}") from error
        if not isinstance(table, pd.DataFrame):
            raise PluginRefused(
                f"{situation.words} it returns a {type(table).__name__}; return a table made by score_rows"
            )
        return table

    @cached_property
    def tables(self) -> list[tuple[Situation, pd.DataFrame]]:
        """Its table in every situation."""
        return [(situation, self.call(situation, self.inputs(situation))) for situation in self.situations]


def declaration(evaluator: Evaluator) -> str:
    """What is declared makes sense by itself: docstring, metrics, needs, settings."""
    spec = evaluator.spec
    if not evaluator.doc.strip():
        return "the function has no docstring; say what is measured, in which unit, and what each setting is"
    if not spec.metrics:
        return "no metric is declared; name each with its Metric"
    for name, metric in spec.metrics.items():
        if not isinstance(metric, Metric):
            return f"metrics[{name!r}] is a {type(metric).__name__}; write a Metric"
        # A name that is known late is its own label.
        if not metric.unit or not (metric.label or name == ANY_NAME):
            return f"the metric {name!r} has no {'label' if metric.unit else 'unit'}; tables and figures show it"
        if metric.better not in ("higher", "lower", "none"):
            return f"the metric {name!r} has better={metric.better!r}; write higher, lower or none"
        if metric.role not in get_args(Role):
            return f"the metric {name!r} has role={metric.role!r}; known: {', '.join(get_args(Role))}"
    for need in spec.needs:
        if need not in evaluator_inputs.NEEDS:
            return str(UnknownName("need", need, evaluator_inputs.NEEDS))
    for name in spec.at_reference:
        if name not in spec.metrics:
            return f"at_reference names {name!r}, which is no declared metric"
    try:
        evaluator.arguments({})
    except UserError as error:
        return str(error)
    return ""


def needs(probe: EvaluatorProbe) -> str:
    """What is declared in needs is enough."""
    for situation in probe.situations:
        if situation.available == frozenset(probe.spec.needs):
            try:
                probe.call(situation, probe.inputs(situation))
            except PluginRefused as refusal:
                return f"{refusal}; declare in needs what it reads, or do without"
    return ""


def columns(probe: EvaluatorProbe) -> str:
    """The table has the columns of score_rows, finite values, declared metrics, and no row twice."""
    for situation, table in probe.tables:
        try:
            check_table(table, probe.spec.metrics, probe.evaluator.name)
        except DpobenchError as error:
            return f"{situation.words}: {error}; make the table with score_rows"
        values = table["value"].to_numpy(dtype=np.float64, na_value=np.nan)
        if not np.isfinite(values).all():
            metric = table["metric"].iloc[int(np.flatnonzero(~np.isfinite(values))[0])]
            return f"{situation.words}: a value of {metric} is not finite; leave out the rows that say nothing"
    return ""


def metrics(probe: EvaluatorProbe) -> str:
    """Every declared metric is produced."""
    produced = {metric for _, table in probe.tables for metric in table["metric"]}
    if not produced:
        return "it returns no row in any situation; return a row per prompt, draw and metric"
    missing = [name for name in probe.spec.metrics if name not in produced and name != ANY_NAME]
    # Where names are known only when it runs, they depend on the task or judge as well.
    if missing and ANY_NAME not in probe.spec.metrics:
        return f"the metric {missing[0]!r} is declared and never produced; leave it out, or return its rows"
    return ""


def deterministic(probe: EvaluatorProbe) -> str:
    """Called twice with the same seed it returns the same table."""
    for situation, table in probe.tables:
        if not probe.call(situation, probe.inputs(situation)).equals(table):
            return (
                f"{situation.words}: two calls on the same inputs differ; use numpy's or torch's global generator, "
                "and keep nothing between calls"
            )
    return ""


def untouched(probe: EvaluatorProbe) -> str:
    """Nothing that it is given is changed in place."""
    for situation in probe.situations:
        given, before = probe.inputs(situation), probe.inputs(situation)
        models = {"policy": situation.checkpoint.policy, "reference": situation.checkpoint.reference}
        weights = {
            (whose, name): weight.detach().clone()
            for whose, model in models.items()
            for name, weight in model.named_parameters()
        }
        probe.call(situation, given)
        tables = {
            name: (getattr(given, name), getattr(before, name)) for name in ("samples", "reference_samples", "pool")
        }
        if given.on_policy is not None and before.on_policy is not None:
            tables |= {
                f"on_policy.{name}": (getattr(given.on_policy, name), getattr(before.on_policy, name))
                for name in ("policy", "reference")
            }
        for name, (frame, expected) in tables.items():
            if list(frame) != list(expected) or not frame.equals(expected):
                return f"it changes held_out.{name} in place; work on a copy"
        if list(given.prompts) != list(before.prompts):
            return "it changes held_out.prompts in place; work on a copy"
        for pair, expected_pair in zip(given.pairs, before.pairs, strict=True):
            for name in ("prompt", "chosen", "rejected", "chosen_reference", "rejected_reference"):
                if not np.array_equal(getattr(pair, name), getattr(expected_pair, name)):
                    return f"it changes the {name} of a held-out pair in place; work on a copy"
        for whose, model in models.items():
            if any(not torch.equal(weight, weights[whose, name]) for name, weight in model.named_parameters()):
                return f"it changes the weights of the {whose}; score it, do not train it"
            if any(module.training for module in model.modules()):
                return f"it leaves the {whose} in training mode; call .eval() again, or leave the mode alone"
    return ""


def order(probe: EvaluatorProbe) -> str:
    """The order of prompts and answers does not matter."""
    for situation, table in probe.tables:
        reverse = probe.call(situation, probe.inputs(situation, reverse=True))
        names = ["prompt", "draw", "group", "metric"]
        expected, other = (frame.set_index(names)["value"].astype(float).to_dict() for frame in (table, reverse))
        if expected.keys() != other.keys():
            return f"{situation.words}: other rows come out when prompts and answers stand in another order"
        for key, value in expected.items():
            if not abs(other[key] - value) <= ROUNDING * max(1.0, abs(value)):
                return (
                    f"{situation.words}: {key[3]} of prompt {key[0]} is {value:.6g}, and {other[key]:.6g} when prompts and answers "
                    "stand in another order; match them by prompt and draw, not by place"
                )
    return ""


def at_reference(probe: EvaluatorProbe) -> str:
    """The reference scored against itself has the values declared for it."""
    tables = [(situation, table) for situation, table in probe.tables if situation.checkpoint.is_reference]
    for name, expected in probe.spec.at_reference.items():
        rows = pd.concat([_against_itself(table, name) for _, table in tables])
        if not len(rows):
            return f"at_reference names {name!r}, but the reference has no such row"
        gaps = (rows["value"] - expected).abs()
        if not bool((gaps <= 1e-6 * max(1.0, abs(expected))).all()):
            value = float(rows["value"].iloc[int(gaps.to_numpy().argmax())])
            return f"at_reference says {name} = {expected:g}, but the reference scored against itself has {value:.6g}"
    return ""


def _against_itself(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Rows of a metric, those against another opponent than the reference left out."""
    return table[(table["metric"] == metric) & (table["group"] != "chosen")]


LAWS: Mapping[str, Callable[[EvaluatorProbe], str]] = {
    "needs": needs,
    "columns": columns,
    "metrics": metrics,
    "deterministic": deterministic,
    "untouched": untouched,
    "order": order,
    "at_reference": at_reference,
}
