"""Several aims at once: what `--objectives helpful=...,harmless=...` says."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dpobench.errors import UnknownName, UserError

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,39}")
# Bare: those that the embedded default brings.
BARE = "auto"
_HUB, _FILES = re.compile(r"[\w.-]+/[\w.-]+"), (".jsonl", ".json", ".gz", ".csv", ".parquet")
_EXAMPLE = "write for example helpful=JUDGE:SETTING,harmless=PAIRS.jsonl"


@dataclass(frozen=True)
class Spec:
    """One aim as it was asked for.

    Args:
        name: what tables call it.
        judge: name of a judge; empty for a set of held-out pairs.
        setting: value of the judge's first setting, empty for its default.
        source: file, folder or hub name of held-out preference pairs; empty for a judge.
    """

    name: str
    judge: str = ""
    setting: str = ""
    source: str = ""


def parse(texts: Sequence[str]) -> dict[str, str]:
    """Read `NAME=VALUE,NAME=VALUE`, given once or several times.

    A comma separates two objectives only where a name and an equals sign follow it.

    Returns: values by name, in their order; `parse(["a=gold:x.py:f,b=p.jsonl"])` is {"a": "gold:x.py:f", "b": "p.jsonl"}.

    Raises:
        UserError: a part without a name or a value, a name that is no name, or one given twice.
    """
    found: dict[str, str] = {}
    for part in (one for text in texts for one in re.split(r",(?=\s*[\w-]+\s*=)", text)):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not value or not NAME.fullmatch(name):
            raise UserError(f"--objectives {part.strip()!r}: a name and a value are expected; {_EXAMPLE}")
        if name in found:
            raise UserError(f"--objectives: {name} is named twice")
        found[name] = value
    return found


def read(values: Mapping[str, str], judges: Collection[str]) -> list[Spec]:
    """What each value means: a judge where it begins with the name of one, else a file of held-out preference pairs.

    Args:
        values: by name, as `parse` returns them.
        judges: names of the judges there are.

    Raises:
        UserError: one objective alone, or a value that is neither a judge nor a file.
    """
    if len(values) == 1:
        raise UserError(f"--objectives names {next(iter(values))} alone; a trade-off needs two or more: {_EXAMPLE}")
    found = []
    for name, value in values.items():
        if not NAME.fullmatch(name):
            raise UserError(f"objective {name!r}: letters, digits, underscores and hyphens are expected")
        judge, _, setting = value.partition(":")
        if judge in judges:
            found.append(Spec(name, judge=judge, setting=setting))
        elif Path(value).expanduser().exists() or (_HUB.fullmatch(value) and Path(value).suffix not in _FILES):
            found.append(Spec(name, source=value))
        elif "/" in judge or Path(judge).suffix:
            raise UserError(f"objective {name}: {value} is no judge, and there is no such file of preference pairs")
        else:
            raise UnknownName(
                "judge", judge, sorted(judges), f" (objective {name}; a file of preference pairs would do, too)"
            )
    return found
