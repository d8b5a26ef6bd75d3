"""The judge that is a Python function from prompt and answer to a score."""

import hashlib
import importlib
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from pathlib import Path
from types import ModuleType
from typing import TypeAlias, cast

import pandas as pd

from dpobench import Prompt, UserError, judge
from dpobench.plugins.registry import import_file

Gold: TypeAlias = Callable[[str, str], object]
"""A function of the user's: prompt and completion to a number, or to a mapping that holds it under "score"; unchecked."""
_EXAMPLE = "write 'module:name' or 'path/to/file.py:name'"


def check(*, function: str = "") -> None:
    """Whether there is such a function.

    Raises:
        UserError: no function is named, or it does not import.
    """
    _function(function)


@judge(pointwise=True, check=check)
def gold(prompts: Sequence[Prompt], completions: Sequence[str], *, function: str = "") -> pd.DataFrame:
    """Score answers by a function of yours.

    Args:
        prompts: N prompts; the function gets the content of the last message.
        completions: an answer to each.
        function: "module:name" or "path/to/file.py:name" of a function `(prompt, completion)` that returns a number, or a
            mapping with the number under "score" and its parts under names of theirs. NaN is no verdict.

    Returns: a row per answer: `score`, and a column per part.

    Raises:
        UserError: no function is named, it does not import, it fails, or it returns something else.
    """
    score = _function(function)
    rows = []
    for prompt, completion in zip(prompts, completions, strict=True):
        try:
            value = score(prompt.text, completion)
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"gold function {function!r} failed on prompt {prompt.id}: {_message(error)}") from error
        rows.append(_parts(value, function))
    return pd.DataFrame(rows, columns=None if rows else ["score"])


def _function(name: str) -> Gold:
    if not name:
        raise UserError(f"the gold judge needs a function; {_EXAMPLE}")
    place, colon, attribute = name.rpartition(":")
    if not colon or not place or not attribute.isidentifier():
        raise UserError(f"gold function {name!r} names no function; {_EXAMPLE}")
    try:
        module = _file(Path(place).expanduser(), name) if place.endswith(".py") else importlib.import_module(place)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"gold function {name!r}: {place} does not import: {_message(error)}") from error
    if attribute not in vars(module):
        known = ", ".join(sorted(k for k, v in vars(module).items() if callable(v) and not k.startswith("_")))
        raise UserError(f"gold function {name!r}: {place} defines no {attribute!r}; its functions: {known or 'none'}")
    function = vars(module)[attribute]
    if not callable(function):
        raise UserError(f"gold function {name!r}: {attribute!r} is a {type(function).__name__}, not a function")
    return cast(Gold, function)


def _file(file: Path, name: str) -> ModuleType:
    if not file.is_file():
        raise UserError(f"gold function {name!r}: no such file {file}")
    # Named by content: an edited file is read again, an unchanged one runs once however often it is named.
    key = hashlib.sha256(str(file.resolve()).encode() + file.read_bytes()).hexdigest()[:12]
    return import_file(file, f"dpobench_gold_{file.stem}_{key}")


def _parts(value: object, name: str) -> dict[str, float]:
    """The score first, then its parts."""
    parts = dict(value) if isinstance(value, Mapping) else {"score": value}
    if "score" not in parts:
        raise UserError(f"gold function {name!r} returned a mapping without 'score': {sorted(parts)}")
    numbers: dict[str, float] = {}
    for part, number in parts.items():
        if not isinstance(number, Real) or abs(number) == float("inf"):
            raise UserError(
                f"gold function {name!r} returned {part} = {number!r}; a finite number, or NaN, is expected"
            )
        numbers[part] = float(number)
    return {"score": numbers.pop("score"), **numbers}


def _message(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
