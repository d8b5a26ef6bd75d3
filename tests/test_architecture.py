"""The shape of the house, read from the syntax trees of its files."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import dpobench
from dpobench.evaluation.registry import evaluators, judges
from dpobench.losses.quantities import NEEDS
from dpobench.losses.registry import variants

ROOT = Path(dpobench.__file__).resolve().parents[1]
ENGINE = sorted((ROOT / "dpobench").rglob("*.py"))
LOSSES = sorted((ROOT / "variants").rglob("*.py"))
EVALS = sorted((ROOT / "evals").rglob("*.py"))
EVERYTHING = [*ENGINE, *LOSSES, *EVALS]

# The rooms, from the bottom up: a room imports from the lines before its own, and from no other room of its line.
ROOMS = (
    {"errors", "stats"},
    {"artifacts"},
    {"plugins", "data", "synthetic"},
    {"losses", "analysis"},
    {"models", "report"},
    {"training", "evaluation"},
    {"testing"},
    {"gallery", "experiment"},
    {"sweep"},
    {"bench", "api"},
    {"cli"},
    {"__main__"},
)
# Modules that a room may hand on to others: more, and nobody remembers what the room is for.
WIDEST = 12
# What a plugin may import beside the standard library, the public names of dpobench and what the rooms hand on.
FOR_LOSSES = {"torch", "math"}
# lm_eval draws the progress bars of datasets, which only datasets can switch off.
FOR_EVALS = {"datasets", "torch", "numpy", "pandas", "transformers", "lm_eval", "openai", "httpx2", "dpobench"}
# Each breaks a rule for the reason given where it stands.
MANY_PARAMETERS = {"dpobench/losses/registry.py:loss"}
CODE_FROM_FILES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
MACHINE = re.compile(r"(?<![\w.])/(?:work|tmp|root|home|Users|mnt)/")


def name_of(file: Path) -> str:
    return str(file.relative_to(ROOT)) if file.is_relative_to(ROOT) else file.name


@cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), str(file))


def for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imported(node: ast.AST, *, types: bool = False) -> Iterator[str]:
    """Dotted names that are imported when the program runs, or for its types, too; `from a import b` gives `a.b`."""
    for child in ast.iter_child_nodes(node):
        if for_types_only(child) and not types:
            continue
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "relative imports hide where a name comes from"
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        yield from imported(child, types=types)


@cache
def imports_of(file: Path) -> tuple[str, ...]:
    return tuple(imported(tree(file)))


def documentation(node: ast.Module) -> set[int]:
    """Identities of the docstrings' nodes, and of bare strings that stand under an attribute as its description."""
    return {id(found.value) for found in ast.walk(node) if isinstance(found, ast.Expr)}


def strings(file: Path) -> Iterator[ast.Constant]:
    """String constants other than docstrings."""
    skipped = documentation(tree(file))
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skipped:
            yield node


def functions(file: Path) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{name_of(file)}:{node.name}", node


def place_of(dotted: str) -> tuple[str, ...]:
    """Room and, below it, module or name that a dotted name of the engine lies in; nothing for other packages."""
    first, *parts = dotted.split(".")
    if first != "dpobench" or not parts:
        return ()
    if parts[0] in dpobench._PUBLIC:
        parts = [*dpobench._PUBLIC[parts[0]].split("."), parts[0]]
    return tuple(parts)


def room_of(file: Path) -> str:
    return file.relative_to(ROOT / "dpobench").parts[0].removesuffix(".py")


def crossings(files: list[Path]) -> Iterator[tuple[Path, str, tuple[str, ...]]]:
    """File, its room, and the place in another room that it imports, at the top of the file or within a function."""
    for file in files:
        room = room_of(file) if file in ENGINE else "plugins of the engine"
        for dotted in imports_of(file):
            place = place_of(dotted)
            if place and place[0] not in (room, "__version__", "evals", "variants") and room != "__init__":
                yield file, room, place


def floor(room: str) -> int:
    for number, rooms in enumerate(ROOMS):
        if room in rooms:
            return number
    raise AssertionError(f"dpobench/{room} is in no line of ROOMS; put it there")


def test_rooms_import_from_below_only():
    upwards = [
        f"{name_of(file)} imports {'.'.join(place)}"
        for file, room, place in crossings(ENGINE)
        if floor(place[0]) >= floor(room)
    ]
    assert upwards == []


def test_every_folder_of_the_engine_is_a_room():
    places = {
        path.stem for path in (ROOT / "dpobench").iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()
    }
    assert places - {"__init__"} == set().union(*ROOMS)


def handed_on(room: str) -> list[str]:
    """What a room's `__all__` names: modules, and names of its own."""
    file = ROOT / "dpobench" / room / "__init__.py"
    if not file.is_file():
        file = ROOT / "dpobench" / f"{room}.py"
    for node in tree(file).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    return []


def test_rooms_import_only_what_another_room_hands_on():
    inside = sorted(
        {
            f"{name_of(file)} imports {'.'.join(place)}"
            for file, _, place in crossings([*ENGINE, *LOSSES, *EVALS])
            if place[0] != "errors" and place[1] not in handed_on(place[0])
        }
    )
    assert inside == [], "\n".join(inside)


@pytest.mark.parametrize("room", sorted(set().union(*ROOMS) - {"errors", "__main__"}))
def test_a_room_hands_on_few_names_and_each_module_of_them_is_used_elsewhere(room):
    names = handed_on(room)
    assert 0 < len(names) <= WIDEST
    public = [place_of(f"dpobench.{name}") for name in dpobench._PUBLIC]
    taken = {
        place[1] for place in (*(place for *_, place in crossings([*ENGINE, *EVALS])), *public) if place[0] == room
    }
    handed = {name for name in names if (ROOT / "dpobench" / room / f"{name}.py").is_file()}
    assert handed <= taken


def modules() -> dict[str, set[str]]:
    """Every module of the engine with those that it imports, wherever the import stands, for types as well."""
    names = {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in ENGINE}
    reached: dict[str, set[str]] = {}
    for name, file in names.items():
        dotted = {".".join(("dpobench", *place_of(one))) for one in imported(tree(file), types=True) if place_of(one)}
        # `from a.b import c` is the module a.b.c, or a name of a.b.
        targets = {one if one in names else one.rpartition(".")[0] for one in dotted}
        reached[name] = {target for target in targets if target in names and target not in (name, "dpobench")}
    return reached


def test_no_two_modules_import_one_another_not_even_by_a_detour():
    imports, done = modules(), set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path, module))
        if module not in done:
            for other in sorted(imports.get(module, ())):
                visit(other, (*path, module))
            done.add(module)

    for module in sorted(imports):
        visit(module, ())


def test_the_engine_imports_no_plugin():
    taken = [
        f"{name_of(file)} imports {dotted}"
        for file in ENGINE
        for dotted in imports_of(file)
        if re.match(r"(dpobench\.)?(variants|evals)(\.|$)", dotted)
    ]
    assert taken == []


def names_as_identifiers(file: Path, names: set[str]) -> Iterator[str]:
    """Plugins imported by name from anywhere but the engine, which has modules of its own called like a judge."""
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.ImportFrom) and not place_of(f"{node.module}."):
            yield from (f"{name_of(file)}:{node.lineno} imports {a.name}" for a in node.names if a.name in names)


def asked_for(file: Path, names: set[str]) -> Iterator[str]:
    """Evaluators asked for by name: `evaluators.get("...")`, and comparisons of a variable called evaluator or name."""
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get":
            owner = ast.unparse(node.func.value)
            constants = [a.value for a in node.args if isinstance(a, ast.Constant)] if "evaluators" in owner else []
        elif isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            about = any(re.search(r"\bevaluators?\b(?!\.)|\bevaluator\.name\b", ast.unparse(side)) for side in sides)
            constants = [c.value for s in sides for c in ast.walk(s) if isinstance(c, ast.Constant)] if about else []
        else:
            continue
        yield from (f"{name_of(file)}:{node.lineno} asks for {value!r}" for value in constants if value in names)


def special_cases(files: list[Path]) -> list[str]:
    """Every place where a plugin is named."""
    # A judge is called what a need of losses is called: the third, best answer of a data set.
    forbidden = {*variants.names(), *judges.names()} - set(NEEDS)
    held = [
        f"{name_of(file)}:{node.lineno} holds {node.value!r}"
        for file in files
        for node in strings(file)
        if (words := [word for word in re.split(r"[\s,=]+", node.value) if word]) and set(words) <= forbidden
    ]
    held += [found for file in files for found in names_as_identifiers(file, forbidden)]
    return held + [found for file in files for found in asked_for(file, set(evaluators.names()))]


def test_the_engine_names_no_plugin():
    """No special case can hide.

    Losses and judges: no string other than a docstring is one of their names, or a list of them between commas, spaces or
    equals signs, and nothing of their name is imported. Evaluators: some are called what rows and columns are called (kl,
    samples), so their names are refused where they could make a special case: asked of the registry, or compared with an
    evaluator's name.
    """
    assert special_cases(ENGINE) == []


def test_a_special_case_for_a_plugin_is_detected(tmp_path):
    loss, evaluator = variants.names()[0], evaluators.names()[0]
    seen = [
        f"from somewhere import {loss}",
        f"default = '{loss},{variants.names()[-1]}'",
        f"variant == {loss!r}",
        f"evaluators.get({evaluator!r})",
        f"evaluator == {evaluator!r}",
        f"evaluator.name in ({evaluator!r}, 'other')",
    ]
    unseen = [f"row[{evaluator!r}]", f"column == {evaluator!r}", f"'''{loss}'''", f"'a {loss} of another kind'"]
    bad = tmp_path / "bad.py"
    bad.write_text("\n".join([*seen, *unseen]) + "\n")
    found = {int(place.partition(":")[2].partition(" ")[0]) for place in special_cases([bad])}
    assert found == set(range(1, len(seen) + 1))


def outside(file: Path) -> Iterator[str]:
    """Everything imported from outside the standard library, types included."""
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            public = node.module == "dpobench" and all(alias.name in dpobench.__all__ for alias in node.names)
            found = [] if public else [node.module or "."]
        else:
            continue
        yield from (dotted for dotted in found if dotted.partition(".")[0] not in sys.stdlib_module_names)


@pytest.mark.parametrize("file", LOSSES, ids=name_of)
def test_a_loss_imports_torch_math_and_public_names_only(file):
    standard = {d.partition(".")[0] for d in imports_of(file)} & set(sys.stdlib_module_names)
    assert {dotted.partition(".")[0] for dotted in outside(file)} | standard <= FOR_LOSSES


@pytest.mark.parametrize("file", EVALS, ids=name_of)
def test_an_evaluator_imports_what_it_may_only(file):
    assert {dotted.partition(".")[0] for dotted in outside(file)} <= FOR_EVALS


def test_no_plugin_folder_is_a_package_of_its_own():
    assert not [name_of(file) for file in [*LOSSES, *EVALS] if file.name == "__init__.py"]


def test_no_file_is_longer_than_400_lines():
    counted = {name_of(file): len(file.read_text(encoding="utf-8").splitlines()) for file in EVERYTHING}
    assert {name: lines for name, lines in counted.items() if lines > 400} == {}


def test_no_function_is_longer_than_90_lines():
    counted = {
        name: node.end_lineno - node.lineno + 1
        for file in EVERYTHING
        for name, node in functions(file)
        if node.end_lineno
    }
    assert {name: lines for name, lines in counted.items() if lines > 90} == {}


def test_no_function_has_more_than_8_parameters():
    counted = {}
    for file in EVERYTHING:
        for name, node in functions(file):
            given = node.args
            names = [
                a.arg for a in (*given.posonlyargs, *given.args, *given.kwonlyargs) if a.arg not in ("self", "cls")
            ]
            counted[name] = len(names)
    assert {name for name, number in counted.items() if number > 8} == MANY_PARAMETERS


def depth(node: ast.AST) -> int:
    """Blocks within blocks below a node; `elif` stands beside its `if`, a function within it begins anew."""
    blocks = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.Try, ast.TryStar, ast.Match)
    deepest = 0
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            continue
        beside = isinstance(node, ast.If) and isinstance(child, ast.If) and node.orelse == [child]
        deepest = max(deepest, depth(child) + (isinstance(child, blocks) and not beside))
    return deepest


def test_no_function_nests_more_than_4_blocks():
    nested = {name: depth(node) for file in EVERYTHING for name, node in functions(file)}
    assert {name: blocks for name, blocks in nested.items() if blocks > 4} == {}


def test_ruff_refuses_what_is_too_complex():
    lint = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["ruff"]["lint"]
    assert lint["mccabe"]["max-complexity"] <= 15
    assert lint["pylint"]["max-args"] <= 8
    assert {"C901", "PLR0913", "T20", "BLE"} <= set(lint["select"])
    assert not {"C901", "PLR0913", "T20", "BLE"} & set(lint.get("ignore", []))
    exempted = [
        name_of(f) for f in EVERYTHING if re.search(r"noqa:[^\n]*\b(C901|BLE001|T20\d)", f.read_text(encoding="utf-8"))
    ]
    assert exempted == []


def test_nothing_reads_a_format_that_runs_code():
    found = [
        f"{name_of(file)} imports {dotted}"
        for file in EVERYTHING
        for dotted in imports_of(file)
        if dotted.partition(".")[0] in CODE_FROM_FILES or dotted == "torch.load"
    ]
    for file in EVERYTHING:
        for node in ast.walk(tree(file)):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if called in (
                "torch.load",
                "eval",
                "exec",
                "pd.read_pickle",
                "pandas.read_pickle",
                "np.load",
                "numpy.load",
            ):
                found.append(f"{name_of(file)}:{node.lineno} calls {called}")
    assert found == []


def test_nothing_prints():
    printed = [
        f"{name_of(file)}:{node.lineno}"
        for file in EVERYTHING
        for node in ast.walk(tree(file))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("print", "pprint")
    ]
    assert printed == []


def test_no_file_knows_a_machines_paths():
    found = [
        f"{name_of(file)}:{number}"
        for file in EVERYTHING
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        if MACHINE.search(line)
    ]
    assert found == []
