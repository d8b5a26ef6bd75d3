"""Task definitions of lm-eval on this machine: where they lie, what they read, and whether they can work at all.

A definition is lm-eval's own YAML. `${NAME}` in it stands for an environment variable, `${HERE}` for the folder it lies in, and
`${LM_EVAL_TASKS}` for the folder of lm-eval's own definitions, so that one of those can be taken with `include:` wherever it is installed.
"""

import contextlib
import difflib
import glob
import importlib
import importlib.metadata
import importlib.util
import os
import re
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from dpobench.artifacts.files import digest, file_hash
from dpobench.errors import UserError

STOCK, HERE = "LM_EVAL_TASKS", "HERE"
_VARIABLE = re.compile(r"\$\{([A-Za-z_]\w*)\}")
_NOT_READ = {"__pycache__", ".ipynb_checkpoints"}
# Data sets that are files of the user's own.
_LOADERS = ("json", "csv", "parquet", "text", "arrow")
_NAMED = re.compile(rb"^['\"]?(?:task|group)['\"]?[ \t]*:[ \t]*['\"]?([\w.+:()-]+)", re.M)
_TAGGED = re.compile(rb"^['\"]?tag['\"]?[ \t]*:((?:[ \t]*\n[ \t]*-[ \t]*[^\n]+)+|[^\n]*)", re.M)


@dataclass(frozen=True)
class Definition:
    """One YAML file, with all it includes.

    Args:
        name: of the task or the group.
        file: where it lies.
        settings: merged, variables filled in; functions stay as text.
        unset: variables in it that have no value.
    """

    name: str
    file: Path
    settings: Mapping[str, Any]
    unset: tuple[str, ...] = ()

    @property
    def members(self) -> list[str]:
        """Names of a group's members; empty for a task."""
        listed = self.settings.get("task") if "group" in self.settings else None
        named = [one.get("task", one.get("group")) if isinstance(one, Mapping) else one for one in listed or ()]
        return [str(name) for name in named if isinstance(name, str)]

    @property
    def files(self) -> list[str]:
        """Data files of the user's own that it names: paths, or patterns of them."""
        given = self.settings.get("dataset_kwargs") or {}
        own = str(self.settings.get("dataset_path")) in _LOADERS
        relative = list(_texts(given.get("data_files"))) if own else []
        return list(dict.fromkeys([*relative, *(text for text in _texts(given) if os.path.isabs(text))]))


class _Reader(yaml.SafeLoader):  # type: ignore[misc] # yaml ships no types
    """YAML as lm-eval writes it; a function is read as its name and not called."""


_Reader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))


def shipped() -> tuple[Path, ...]:
    """Folders with the definitions that come with this package."""
    roots = [Path(root) / "tasks" for root in importlib.import_module("dpobench.evals").__path__]
    return tuple(root for root in roots if root.is_dir())


def stock_folder() -> Path:
    """Folder of lm-eval's own definitions; lm-eval is not imported."""
    found = importlib.util.find_spec("lm_eval")
    assert found is not None
    return Path((found.submodule_search_locations or [""])[0]) / "tasks"


def definitions(folders: Sequence[Path | str]) -> dict[str, Definition]:
    """Tasks, groups and tags of some folders by name; of two with one name the later folder's counts, as in lm-eval.

    Raises:
        UserError: a folder is not there.
    """
    found: dict[str, Definition] = {}
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise UserError(
                f"task folder {folder}: no such folder; name one with evaluation.task_folders, or leave it out"
            )
        for file in _yamls(folder):
            # As lm-eval does: what is no definition is passed over. A name that nothing defines is an error where it is asked for.
            with contextlib.suppress(OSError, ValueError, yaml.YAMLError, RecursionError):
                found |= _named(file)
    return found


def _named(file: Path) -> dict[str, Definition]:
    unset: list[str] = []
    settings = _merged(file, unset)
    name = settings.get("group") or settings.get("task")
    if not isinstance(name, str):
        return {}
    return {name: Definition(name, file, settings, tuple(dict.fromkeys(unset)))}


def _merged(file: Path, unset: list[str]) -> dict[str, Any]:
    """A file over those it includes; variables without a value are put down in `unset`."""
    own = yaml.load(_filled(file, unset), Loader=_Reader)
    if not isinstance(own, dict):
        raise ValueError(f"{file}: no mapping")
    listed = own.pop("include", [])
    merged: dict[str, Any] = {}
    for name in listed if isinstance(listed, list) else [listed]:
        if not _VARIABLE.search(str(name)):
            merged |= _merged(file.parent / str(name), unset)
    return merged | own


def _filled(file: Path, unset: list[str]) -> str:
    """Text of a definition, its variables replaced by their values where they have one."""

    def value(match: re.Match[str]) -> str:
        known = os.environ | {STOCK: str(stock_folder()), HERE: str(file.parent.resolve())}
        if match[1] not in known:
            unset.append(match[1])
        return known.get(match[1], match[0])

    text = file.read_text(encoding="utf-8")
    # A comment may name a variable that nobody needs.
    return _VARIABLE.sub(value, re.sub(r"^\s*#.*$", "", text, flags=re.M))


def _yamls(folder: Path) -> list[Path]:
    return [file for file in sorted(folder.rglob("*.yaml")) if not _NOT_READ & set(file.parts)]


@contextlib.contextmanager
def filled(folders: Sequence[Path | str]) -> Iterator[tuple[str, ...]]:
    """While open, folders as lm-eval itself can read them: where a definition has variables, a copy of its folder with them filled in.

    Whatever else lies in such a folder is linked to, so that functions find the files beside them.
    """
    with tempfile.TemporaryDirectory() as place:
        yield tuple(str(_copied(Path(folder), Path(place) / str(n))) for n, folder in enumerate(folders))


def _copied(folder: Path, target: Path) -> Path:
    changed = {file: _filled(file, []) for file in _yamls(folder) if _VARIABLE.search(file.read_text(encoding="utf-8"))}
    if not changed:
        return folder
    for file in folder.rglob("*"):
        if file.is_file() and not _NOT_READ & set(file.parts):
            place = target / file.relative_to(folder)
            place.parent.mkdir(parents=True, exist_ok=True)
            if file in changed:
                place.write_text(changed[file], encoding="utf-8")
            else:
                place.symlink_to(file.resolve())
    return target


@lru_cache(maxsize=1)
def stock_names() -> frozenset[str]:
    """Names of lm-eval's own tasks, groups and tags, found by their first words in its files: two seconds, once."""
    found: set[bytes] = set()
    # What definitions include holds tags too, and its name has no ending there.
    for file in stock_folder().rglob("*"):
        if not (file.suffix in ("", ".yaml") and file.is_file()):
            continue
        content = file.read_bytes()
        found.update(_NAMED.findall(content))
        for listed in _TAGGED.findall(content):
            found.update(re.findall(rb"[\w.+:()-]+", listed))
    return frozenset(name.decode() for name in found)


def leaves(name: str, known: Mapping[str, Definition]) -> list[Definition]:
    """Local definitions behind a name: of a task itself, of a group or tag all of its tasks. Empty where it is not local."""
    if name in known:
        own = known[name]
        below = [leaf for member in own.members if member != name for leaf in leaves(member, known)]
        return below if own.members else [own]
    return [one for one in known.values() if name in _texts(one.settings.get("tag"))]


def check_tasks(names: Sequence[str], folders: Sequence[Path | str] = (), beside: Collection[str] = ()) -> None:
    """Refuse tasks that cannot be scored, before anything is computed. No data are read.

    Args:
        names: tasks, groups or tags.
        folders: with definitions of the user's own.
        beside: names whose definitions will be written later.

    Raises:
        UserError: nobody knows a name; a definition names a variable without a value, a file that is not there, or a metric
            that lm-eval does not have.
    """
    known = definitions([*shipped(), *folders])
    for name in names:
        if name in beside:
            continue
        found = leaves(name, known)
        if not found and name not in stock_names():
            raise _unknown(name, [*known, *beside], folders)
        for one in found:
            _check(one)


def _check(one: Definition) -> None:
    if one.unset:
        raise UserError(
            f"task {one.name!r} reads ${{{one.unset[0]}}}, which is not set; set it to the folder of the data, "
            f"as in `export {one.unset[0]}=FOLDER` ({one.file} says which files it looks for)"
        )
    for place in one.files:
        if "://" not in place and not glob.glob(place):
            raise UserError(f"task {one.name!r} reads {place}, which is not there; mend the path in {one.file}")
    _check_metrics(one)


def _check_metrics(one: Definition) -> None:
    """A mistyped metric: lm-eval would look for code of that name on the hub, and run it."""
    listed = one.settings.get("metric_list")
    own = one.settings.get("process_results")
    asked = [entry.get("metric") for entry in listed or () if not (entry.get("hf_evaluate") or own)]
    if not asked:
        return
    from lm_eval.api.registry import metric_registry

    importlib.import_module("lm_eval.api.metrics")  # fills the registry

    known = list(metric_registry)
    for metric in asked:
        # A function stands there as a path.
        if isinstance(metric, str) and "/" not in metric and "." not in metric and metric not in known:
            nearest = difflib.get_close_matches(metric, known, n=1, cutoff=0.5)
            guess = f"; did you mean {nearest[0]!r}?" if nearest else f"; it has {', '.join(sorted(known))}"
            raise UserError(f"task {one.name!r} asks for metric {metric!r}, which lm-eval does not have{guess}")


def _unknown(name: str, own: Sequence[str], folders: Sequence[Path | str]) -> UserError:
    stock = difflib.get_close_matches(name, list(stock_names()), n=3, cutoff=0.6)
    near = [*difflib.get_close_matches(name, own, n=2, cutoff=0.6), *(f"{one}_local" for one in stock)]
    local = [one for one in dict.fromkeys(near) if one in own]
    said = [f"{', '.join(map(repr, local))} (local)"] if local else []
    said += [f"{', '.join(map(repr, stock))} (lm-eval's own, data from the hub)"] if stock else []
    guess = f" Nearest: {'; '.join(said)}." if said else ""
    unread = [file for folder in folders for file in sorted(Path(folder).rglob(f"{name}.yaml"))]
    hint = f" {unread[0]} is there, but it holds no task of that name that can be read." if unread else ""
    looked = ", ".join(map(str, folders)) or "the definitions shipped here"
    return UserError(f"no task is called {name!r} in {looked} or in lm-eval.{guess}{hint}")


def tasks_key(names: Sequence[str], folders: Sequence[Path | str] = ()) -> str:
    """Content key of tasks: their definitions, the functions beside them, the data files they name, and lm-eval's version.

    A task of lm-eval's own counts by name and version: its data come from the hub.
    """
    places = [*shipped(), *map(Path, folders)]
    known = definitions(places)
    named = sorted({place for name in names for one in leaves(name, known) for place in one.files})
    data = [(Path(file).name, _content(Path(file))) for place in named for file in sorted(glob.glob(place))]
    beside = [[(file.relative_to(folder).as_posix(), _content(file)) for file in _all(folder)] for folder in places]
    return digest(list(names), beside, data, importlib.metadata.version("lm_eval"))


def _content(place: Path) -> Any:
    return file_hash(place) if place.is_file() else [(file.name, file_hash(file)) for file in _all(place)]


def _all(folder: Path) -> list[Path]:
    return [file for file in sorted(folder.rglob("*")) if file.is_file() and not _NOT_READ & set(file.parts)]


def _texts(found: Any) -> list[str]:
    """All texts in something that YAML can hold."""
    if isinstance(found, Mapping):
        return [text for value in found.values() for text in _texts(value)]
    if isinstance(found, list | tuple):
        return [text for value in found for text in _texts(value)]
    return [found] if isinstance(found, str) else []
