"""The code that a Python file is made of: itself and the local modules it imports, read from syntax trees; nothing is imported."""

import ast
import hashlib
import importlib.util
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path

# The engine is no local module of anybody; the folders of plugins in it are.
_ENGINE, _PLUGINS = "dpobench", (("dpobench", "evals"), ("dpobench", "variants"))


def code_hash(file: Path) -> str:
    """Hash of a file's syntax tree: comments, layout and docstrings do not change it, code does.

    Local modules that the file imports count, wherever they stand in it, and theirs too; see `local_modules`.

    Returns: 12 hexadecimal digits; of a file that imports nothing local, those of its tree alone.
    """
    tree_hash, modules = _tree_hash(file), local_modules(file)
    if not modules:
        return tree_hash[:12]
    # By name and content: where a project lies does not count.
    hashes = [tree_hash, *sorted(f"{module.name}:{_tree_hash(module)}" for module in modules)]
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()[:12]


def local_modules(file: Path) -> list[Path]:
    """The modules that a file imports from its folder or package, or from the folders of plugins, and what these import.

    Installed libraries, the standard library and the engine are not among them. A module that cannot be parsed is there, too, but
    what it imports is not known.

    Returns: files, sorted; the file itself is not among them.
    """
    start = file.resolve()
    visited, waiting = {start}, [start]
    while waiting:
        here = waiting.pop()
        new = {one.resolve() for name in _imported(here) for one in _files(name, here, start)} - visited
        visited |= new
        waiting += new
    return sorted(visited - {start})


def module_file(dotted: str) -> Path | None:
    """The file of a module by its dotted name, without importing it or its package; None where there is none."""
    top, *rest = dotted.split(".")
    if top == "__main__":  # whatever was started: no module of anybody's
        return None
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if not rest:
        return Path(spec.origin) if spec.origin and Path(spec.origin).is_file() else None
    places = [Path(root, *rest) for root in spec.submodule_search_locations or ()]
    files = [file for place in places for file in (place / "__init__.py", place.with_name(f"{place.name}.py"))]
    return next((file for file in files if file.is_file()), None)


def _tree_hash(file: Path) -> str:
    content = file.read_bytes()
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError):
        return hashlib.sha256(content).hexdigest()
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            value = body[0].value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                value.value = ""
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def _imported(file: Path) -> Iterator[tuple[str, ...]]:
    """Names that a file imports, as parts; a relative one begins with its package, as a path."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (tuple(alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = (str(file.parents[node.level - 1]),) if node.level else ()
            module = tuple(node.module.split(".")) if node.module else ()
            yield from ((*package, *module, alias.name) for alias in node.names)


def _files(name: Sequence[str], here: Path, start: Path) -> list[Path]:
    """The files that an import runs, of those that are local to the file it all began with."""
    if name[0].startswith("/"):
        return _below(Path(name[0]), name[1:])
    if name[0] == _ENGINE:
        return _plugin_pieces(name)
    package = _top(here)
    if package is not None and name[0] == package.name:
        return [package / "__init__.py", *_below(package, name[1:])]
    return [] if package is not None and start != here else _neighbours(name, here)


def _neighbours(name: Sequence[str], here: Path) -> list[Path]:
    """Of modules in the file's folder: none where that is the folder of all libraries."""
    libraries = {Path(sysconfig.get_path(kind)).resolve() for kind in ("purelib", "platlib", "stdlib")}
    return [] if here.parent in libraries else _below(here.parent, name)


def _plugin_pieces(name: Sequence[str]) -> list[Path]:
    if tuple(name[:2]) not in _PLUGINS:
        return []
    return [file for root in sys.modules[_ENGINE].__path__ for file in _below(Path(root), name[1:])]


def _top(file: Path) -> Path | None:
    """The topmost package that a file lies in."""
    top, folder = None, file.parent
    while (folder / "__init__.py").is_file():
        top, folder = folder, folder.parent
    return top


def _below(folder: Path, name: Sequence[str]) -> list[Path]:
    """The files of a dotted name below a folder, from the top down: packages, then the module; what follows it is no file."""
    files: list[Path] = []
    for part in name:
        if (folder / f"{part}.py").is_file():
            return [*files, folder / f"{part}.py"]
        folder = folder / part
        if not folder.is_dir():
            return files
        if (folder / "__init__.py").is_file():
            files.append(folder / "__init__.py")
    return files
