"""The form of every record: a frozen model with the number of its format, written and read in one way."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from dpobench.artifacts.files import FORMAT, read_json, refuse_format, write_json
from dpobench.errors import Damaged

# Hyper-parameters or settings by name; only the plugin that declares them knows their types.
Values = dict[str, JsonValue]
# What a table shows of a value.
Cell = str | float | int | None
Status = Literal["done", "unscored", "diverged", "failed", "missing"]


class Part(BaseModel):
    """Base of everything in a record: frozen, and without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Section(BaseModel):
    """Base of recorded settings: declares those that results are read with, and carries the others along unread."""

    model_config = ConfigDict(extra="allow", frozen=True)


class Record(Part):
    """Base of every file of JSON.

    Args:
        format: of the file; a reader knows one.
    """

    FILE: ClassVar[str] = ""
    format: int = FORMAT

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the record of a folder.

        Raises:
            UserError: it was written in another format.
            Damaged: it is no such record.
        """
        return cls.read_file(folder / cls.FILE)

    @classmethod
    def read_file(cls, path: Path) -> Self:
        """The same for a file of another name."""
        content = read_json(path)
        refuse_format(path.parent, content)
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise Damaged(
                f"{path} is damaged ({where}: {first['msg'].lower()}); remove it and run again, only this part is made anew"
            ) from error

    @classmethod
    def lies_in(cls, folder: Path) -> bool:
        """Whether a folder holds this record."""
        return (folder / cls.FILE).is_file()

    def write(self, folder: Path) -> None:
        """Write the record into a folder, whole or not at all."""
        self.write_file(folder / self.FILE)

    def write_file(self, path: Path) -> None:
        """The same for a file of another name."""
        write_json(path, {"format": self.format} | self.model_dump(mode="json"))


def json_values(tree: Mapping[str, object]) -> Values:
    """Values of settings in the form in which JSON holds them: paths as text, tuples as lists."""
    values: Values = json.loads(json.dumps(tree, default=str))
    return values
