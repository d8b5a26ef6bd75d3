"""Whether what a loss declares makes sense by itself, before the loss is called at all."""

import inspect
from itertools import pairwise
from typing import get_args

from dpobench.errors import UnknownName, UserError
from dpobench.losses.quantities import NEEDS
from dpobench.losses.spec import UNITS, Gradient
from dpobench.losses.variant import Variant
from dpobench.plugins.plugin import keywords


def declaration(variant: Variant) -> str:
    """What is declared makes sense by itself: source, unit, class, strength, grids within bounds, docstring."""
    spec, strength = variant.spec, variant.strength
    if not variant.doc.strip():
        return "the function has no docstring; give the formula and say what each argument is"
    if not str(spec.source).strip():
        return "no source; name the paper and equation, or 'as implemented by ...'"
    if variant.unit not in UNITS:
        return f"unit={variant.unit!r} is none of {', '.join(map(repr, UNITS))}"
    if spec.gradient not in get_args(Gradient):
        return f"gradient={spec.gradient!r} is none of {', '.join(map(repr, get_args(Gradient)))}"
    try:
        if strength not in variant.parameters:
            return f"strength={strength!r} is no keyword-only argument of the function"
        if not isinstance(variant.parameters[strength].default, float):
            return f"the default of {strength} is {variant.parameters[strength].default!r}; write a float"
        for parameter in variant.parameters.values():
            for value in (parameter.default, *parameter.grid):
                parameter.accept(value, variant.name)
    except UserError as error:
        return str(error)
    for name in spec.grids:
        grid = variant.parameters[name].grid
        if not grid:
            return f"the grid of {name} is empty; declare the values a user should try"
        if any(low >= high for low, high in pairwise(grid)):
            return f"the grid of {name} is {grid}; write distinct values in rising order"
    if spec.baseline and (spec.reference or variant.needs or variant.columns):
        return "baseline=True, but the loss has a reference, needs or columns; a baseline learns from the chosen answers alone"
    return _needs_declared(variant) or _running_declared(variant) or _start_declared(variant)


def _needs_declared(variant: Variant) -> str:
    for name in variant.needs:
        if name not in NEEDS:
            return str(UnknownName("need", name, NEEDS))
    if len(set(variant.needs)) < len(variant.needs):
        return f"needs={variant.needs} names something twice"
    defaults = variant.arguments({})
    for taken, name in variant.given_to_needs().items():
        try:
            variant.pick(taken, defaults)
        except KeyError:
            return f"the need {name!r} is computed with {taken}, which the loss does not take; add a keyword-only argument {taken}"
    return ""


def _running_declared(variant: Variant) -> str:
    for name in [] if variant.spec.running is None else keywords(variant.spec.running.next):
        if name not in variant.parameters:
            return f"update takes {name!r}, which is no hyper-parameter of the loss"
    return ""


def _start_declared(variant: Variant) -> str:
    start = variant.spec.start
    if callable(start):
        unknown = [name for name in inspect.signature(start).parameters if name not in variant.parameters]
        if unknown:
            return f"start takes {unknown[0]!r}, which is no hyper-parameter of the loss"
    elif start is not None and not isinstance(start, int | float):
        return f"start={start!r} is neither a number nor a function of hyper-parameters"
    return ""
