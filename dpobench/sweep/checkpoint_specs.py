"""Checkpoints as the command line names them: `FOLDER`, `NAME=FOLDER,FOLDER`, patterns."""

import glob
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dpobench.errors import UserError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+:-]{0,99}")
# Every table has a row of this name.
RESERVED = "reference"


@dataclass(frozen=True)
class CheckpointSpec:
    """A checkpoint as it was named on the command line.

    Args:
        place: folder or hub name.
        method: what it is called there; empty to be named after its folder.
        number: its place among the checkpoints of its method, which stands for its seed.
    """

    place: str
    method: str = ""
    number: int = 0


def read_specs(arguments: Sequence[str]) -> list[CheckpointSpec]:
    """Read `FOLDER`, `NAME=FOLDER` and `NAME=FOLDER,FOLDER,...`; a folder may be a pattern such as `ckpt/seed*`.

    Raises:
        UserError: a name that no table can hold, a pattern that matches nothing, no folder behind a name.
    """
    specs: list[CheckpointSpec] = []
    for argument in arguments:
        method, equals, places = argument.partition("=")
        if not equals or expanded(argument).is_dir():
            specs += [CheckpointSpec(place) for place in _matching(argument)]
            continue
        if not _NAME.fullmatch(method) or method == RESERVED:
            raise UserError(
                f"checkpoint {argument!r}: {method!r} can name no row of a table; write for example dpo=FOLDER,FOLDER"
            )
        matched = [one for place in places.split(",") for one in _matching(place.strip())]
        taken = sum(spec.method == method for spec in specs)
        specs += [CheckpointSpec(place, method, taken + number) for number, place in enumerate(matched)]
    return specs


def expanded(place: str) -> Path:
    """With a home folder for its tilde; that of nobody stays as it is."""
    return Path(os.path.expanduser(place))


def _matching(place: str) -> list[str]:
    if not place:
        raise UserError(
            "a checkpoint without a folder; write FOLDER, or NAME=FOLDER,FOLDER for several seeds of one method"
        )
    if not glob.has_magic(place) or expanded(place).exists():
        return [place]
    matched = sorted(glob.glob(str(expanded(place))))
    if not matched:
        raise UserError(f"checkpoint {place!r}: nothing matches this pattern; name folders that exist")
    return matched
