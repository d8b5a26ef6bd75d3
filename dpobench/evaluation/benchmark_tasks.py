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

import yaml
from pydantic import JsonValue

from dpobench.artifacts.files import digest, file_hash
from dpobench.errors import UserError

STOCK, HERE = "LM_EVAL_TASKS", "HERE"
_VARIABLE = re.compile(r"\$\{([A-Za-z_]\w*)\}")
_NOT_READ = {"__pycache__", ".ipynb_checkpoints"}
# How a definition names data sets that are files on this machine.
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
    settings: Mapping[str, JsonValue]
    unset: tuple[str, ...] = ()

    @property
    def members(self) -> list[str]:
        """Names of a group's members; empty for a task."""
        listed = self.settings.get("task") if "group" in self.settings else None
        entries = listed if isinstance(listed, list) else []
        names = [entry.get("task", entry.get("group")) if isinstance(entry, dict) else entry for entry in entries]
        return [name for name in names if isinstance(name, str)]

    @property
    def files(self) -> list[str]:
        """Data files on this machine that it names: paths, or patterns of them."""
        given = self.settings.get("dataset_kwargs")
        options = given if isinstance(given, dict) else {}
        relative = _texts(options.get("data_files")) if str(self.settings.get("dataset_path")) in _LOADERS else []
        return list(dict.fromkeys([*relative, *(text for text in _texts(options) if os.path.isabs(text))]))


class _Reader(yaml.SafeLoader):  # type: ignore[misc] # yaml ships no types
    """YAML as lm-eval writes it; a function is read as its name and not called."""


_Reader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))


def shipped() -> tuple[Path, ...]:
    """Folders with the definitions that come with this package."""
    roots = [Path(root) / "tasks" for root in importlib.import_module("dpobench.evals").__path__]
    return tuple(root for root in roots if root.is_dir())


def stock_folder() -> Path:
    """Folder of lm-eval's own definitions; lm-eval is not imported."""
    package = importlib.util.find_spec("lm_eval")
    assert package is not None
    return Path((package.submodule_search_locations or [""])[0]) / "tasks"


def definitions(folders: Sequence[Path | str]) -> dict[str, Definition]:
    """Tasks and groups that the files of some folders define, by name; of two with one name the later folder's counts, as in lm-eval.

    Raises:
        UserError: a folder is not there.
    """
    by_name: dict[str, Definition] = {}
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise UserError(
                f"task folder {folder}: no such folder; name one with evaluation.task_folders, or leave it out"
            )
        for file in _yamls(folder):
            # As lm-eval does: what is no definition is passed over. A name that nothing defines is an error where it is requested.
            with contextlib.suppress(OSError, ValueError, yaml.YAMLError, RecursionError):
                unset: list[str] = []
                settings = _merged(file, unset)
                name = settings.get("group") or settings.get("task")
                if isinstance(name, str):
                    by_name[name] = Definition(name, file, settings, tuple(dict.fromkeys(unset)))
    return by_name


def _merged(file: Path, unset: list[str]) -> dict[str, JsonValue]:
    """A file over those it includes; variables without a value are put down in `unset`."""
    settings = yaml.load(_filled(file, unset), Loader=_Reader)
    if not isinstance(settings, dict):
        raise ValueError(f"{file}: no mapping")
    included = settings.pop("include", [])
    merged: dict[str, JsonValue] = {}
    for name in included if isinstance(included, list) else [included]:
        if not _VARIABLE.search(str(name)):
            merged |= _merged(file.parent / str(name), unset)
    return merged | settings


def _filled(file: Path, unset: list[str]) -> str:
    """Text of a definition, its variables replaced by their values where they have one."""

    def value(match: re.Match[str]) -> str:
        variables = os.environ | {STOCK: str(stock_folder()), HERE: str(file.parent.resolve())}
        if match[1] not in variables:
            unset.append(match[1])
        return variables.get(match[1], match[0])

    text = file.read_text(encoding="utf-8")
    # A comment may name a variable that nobody needs.
    return _VARIABLE.sub(value, re.sub(r"^\s*#.*$", "", text, flags=re.M))


def _yamls(folder: Path) -> list[Path]:
    return [file for file in sorted(folder.rglob("*.yaml")) if not _NOT_READ & set(file.parts)]


@contextlib.contextmanager
def filled(folders: Sequence[Path | str]) -> Iterator[tuple[str, ...]]:
    """While open, folders as lm-eval itself can read them: where a definition has variables, a copy of its folder with them filled in.

    Whatever else lies in such a folder is linked to, so that functions read the files next to them.
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
    """Names of lm-eval's own tasks, groups and tags, read from the first words of lines of its files: two seconds, once."""
    names: set[bytes] = set()
    # What definitions include holds tags too, and its name has no ending there.
    for file in stock_folder().rglob("*"):
        if not (file.suffix in ("", ".yaml") and file.is_file()):
            continue
        content = file.read_bytes()
        names.update(_NAMED.findall(content))
        for tags in _TAGGED.findall(content):
            names.update(re.findall(rb"[\w.+:()-]+", tags))
    return frozenset(name.decode() for name in names)


def leaves(name: str, local: Mapping[str, Definition]) -> list[Definition]:
    """Local definitions behind a name: of a task itself, of a group or tag all of its tasks.

    Args:
        name: of a task, group or tag.
        local: from `definitions`.

    Returns: definitions of tasks; empty where the name is not local.
    """
    if name in local:
        members = local[name].members
        below = [leaf for member in members if member != name for leaf in leaves(member, local)]
        return below if members else [local[name]]
    return [task for task in local.values() if name in _texts(task.settings.get("tag"))]


def check_tasks(names: Sequence[str], folders: Sequence[Path | str] = (), later: Collection[str] = ()) -> None:
    """Refuse tasks that cannot be scored, before anything is computed. No data are read.

    Args:
        names: tasks, groups or tags.
        folders: with local definitions, besides those shipped here.
        later: names whose definitions will be written later.

    Raises:
        UserError: nobody knows a name; a definition names a variable without a value, a file that is not there, or a metric
            that lm-eval does not have.
    """
    local = definitions([*shipped(), *folders])
    for name in names:
        if name in later:
            continue
        tasks = leaves(name, local)
        if not tasks and name not in stock_names():
            raise _unknown(name, [*local, *later], folders)
        for task in tasks:
            _check(task)


def _check(task: Definition) -> None:
    if task.unset:
        raise UserError(
            f"task {task.name!r} reads ${{{task.unset[0]}}}, which is not set; set it to the folder of the data, "
            f"as in `export {task.unset[0]}=FOLDER` ({task.file} says which files it looks for)"
        )
    for place in task.files:
        if "://" not in place and not glob.glob(place):
            raise UserError(f"task {task.name!r} reads {place}, which is not there; mend the path in {task.file}")
    _check_metrics(task)


def _check_metrics(task: Definition) -> None:
    """Refuse a mistyped metric: lm-eval would look for code of that name on the hub, and run it."""
    listed = task.settings.get("metric_list")
    entries = [entry for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []
    with_function = bool(task.settings.get("process_results"))
    names = [entry.get("metric") for entry in entries if not (entry.get("hf_evaluate") or with_function)]
    if not names:
        return
    importlib.import_module("lm_eval.api.metrics")  # fills the registry
    registry: Mapping[str, object] = importlib.import_module("lm_eval.api.registry").metric_registry
    metrics = list(registry)
    for name in names:
        # A function stands there as a path.
        if isinstance(name, str) and "/" not in name and "." not in name and name not in metrics:
            nearest = difflib.get_close_matches(name, metrics, n=1, cutoff=0.5)
            guess = f"; did you mean {nearest[0]!r}?" if nearest else f"; it has {', '.join(sorted(metrics))}"
            raise UserError(f"task {task.name!r} asks for metric {name!r}, which lm-eval does not have{guess}")


def _unknown(name: str, local: Sequence[str], folders: Sequence[Path | str]) -> UserError:
    stock = difflib.get_close_matches(name, list(stock_names()), n=3, cutoff=0.6)
    near = [*difflib.get_close_matches(name, local, n=2, cutoff=0.6), *(f"{similar}_local" for similar in stock)]
    nearest = [similar for similar in dict.fromkeys(near) if similar in local]
    guesses = [f"{', '.join(map(repr, nearest))} (local)"] if nearest else []
    guesses += [f"{', '.join(map(repr, stock))} (lm-eval's own, data from the hub)"] if stock else []
    guess = f" Nearest: {'; '.join(guesses)}." if guesses else ""
    unread = [file for folder in folders for file in sorted(Path(folder).rglob(f"{name}.yaml"))]
    hint = f" {unread[0]} is there, but it holds no task of that name that can be read." if unread else ""
    places = ", ".join(map(str, folders)) or "the definitions shipped here"
    return UserError(f"no task is called {name!r} in {places} or in lm-eval.{guess}{hint}")


def tasks_key(names: Sequence[str], folders: Sequence[Path | str] = ()) -> str:
    """Content key of tasks: their definitions, the functions with them, the data files they name, and lm-eval's version.

    A task of lm-eval's own counts by name and version: its data come from the hub.

    Args:
        names: tasks, groups or tags.
        folders: with local definitions, besides those shipped here.
    """
    places = [*shipped(), *map(Path, folders)]
    local = definitions(places)
    patterns = sorted({pattern for name in names for task in leaves(name, local) for pattern in task.files})
    data = [(Path(file).name, _content(Path(file))) for pattern in patterns for file in sorted(glob.glob(pattern))]
    code = [[(file.relative_to(folder).as_posix(), _content(file)) for file in _all(folder)] for folder in places]
    return digest(list(names), code, data, importlib.metadata.version("lm_eval"))


def _content(place: Path) -> str | list[tuple[str, str]]:
    return file_hash(place) if place.is_file() else [(file.name, file_hash(file)) for file in _all(place)]


def _all(folder: Path) -> list[Path]:
    return [file for file in sorted(folder.rglob("*")) if file.is_file() and not _NOT_READ & set(file.parts)]


def _texts(value: JsonValue) -> list[str]:
    """All texts in a value of a YAML file."""
    if isinstance(value, dict):
        return [text for entry in value.values() for text in _texts(entry)]
    if isinstance(value, list):
        return [text for entry in value for text in _texts(entry)]
    return [value] if isinstance(value, str) else []
