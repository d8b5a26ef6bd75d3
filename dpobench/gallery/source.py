"""What a plugin's file says of it, read from the syntax tree: neither torch nor the plugin is imported."""

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dpobench.errors import UserError


@dataclass(frozen=True)
class Source:
    """A decorated function as its file has it. What cannot be read without running the file is None.

    Args:
        name: of the function.
        doc: first line of its docstring.
        declared: arguments of the decorator.
        defaults: default of each keyword-only argument of the function.
    """

    name: str
    doc: str
    declared: Mapping[str, object]
    defaults: Mapping[str, object]

    def names(self, declared: str) -> tuple[str, ...]:
        """The texts among a declared sequence, or the keys of a declared mapping."""
        values = self.declared.get(declared)
        return (
            tuple(value for value in values if isinstance(value, str))
            if isinstance(values, tuple | list | dict)
            else ()
        )

    def text(self, declared: str, otherwise: str) -> str:
        """A declared text, or another one where none is declared."""
        value = self.declared.get(declared)
        return value if isinstance(value, str) and value else otherwise


def read(name: str, file: Path, decorator: str) -> Source:
    """Read one decorated function of a file.

    Raises:
        UserError: the decorator is not called.
    """
    tree = ast.parse(file.read_text(encoding="utf-8"))
    constants = {
        target.id: _literal(node.value, {})
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    function = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name)
    calls = [mark for mark in function.decorator_list if isinstance(mark, ast.Call) and _called(mark) == decorator]
    if not calls:
        raise UserError(f"{file.name}: @{decorator} of {name} is not called; write @{decorator}(...)")
    declared = {word.arg: _literal(word.value, constants) for word in calls[0].keywords if word.arg}
    pairs = zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True)
    defaults = {argument.arg: value and _literal(value, constants) for argument, value in pairs}
    return Source(name, (ast.get_docstring(function) or "").partition("\n")[0], declared, defaults)


def _called(call: ast.Call) -> str:
    return str(getattr(call.func, "id", getattr(call.func, "attr", "")))


def _literal(node: ast.expr, constants: Mapping[str, object]) -> object:
    """Value of an expression that can be read without running it; None for the others."""
    if isinstance(node, ast.Name):
        return constants.get(node.id)
    if isinstance(node, ast.Dict):
        keys = [key and _literal(key, constants) for key in node.keys]
        return {key: _literal(value, constants) for key, value in zip(keys, node.values, strict=True)}
    try:
        value: object = ast.literal_eval(node)
    except ValueError:
        # What cannot be read is there all the same: two functions are running statistics.
        return tuple(_literal(one, constants) for one in node.elts) if isinstance(node, ast.Tuple) else None
    return value
