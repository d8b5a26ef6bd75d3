"""Settings of where preference pairs come from."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

if TYPE_CHECKING:
    from dpobench.data.check import DataReport
from dpobench.artifacts.settings import Settings


class Data(Settings):
    """Where preference pairs come from and how they are read.

    Args:
        source: file, folder or hub name of the training pairs.
        heldout: the same for held-out pairs; without it a share of the prompts of `source` is held out.
        prompts: file of further held-out prompts; without it those of the held-out pairs.
        split: split of a hub data set.
        heldout_share: share of the prompts held out where `heldout` is not given.
        format: layout, where it is not to be detected.
        columns: column of the file for each column of ours.
        template: "auto", "plain" or a Jinja file.
        on_bad_row: "error", or "drop" and count.
        most_lost: share of the rows that may be left out because their prompt is too long.
        limit: most training pairs used, the first by hash.
    """

    source: str | None = None
    heldout: str | None = None
    prompts: str | None = None
    split: str | None = None
    heldout_share: float = Field(0.1, gt=0, lt=1)
    format: str | None = None
    columns: dict[str, str] = Field(default_factory=dict)
    template: str = "auto"
    on_bad_row: Literal["error", "drop"] = "error"
    most_lost: float = Field(0.1, ge=0, le=1)
    limit: int | None = Field(None, ge=1)

    def read(self, source: str, control: Sequence[str]) -> "DataReport":
        """Read preference pairs as these settings say.

        Args:
            source: file, folder or hub name.
            control: control tokens of the model, which no text of the data may be taken for.
        """
        from dpobench.data.reading import read

        return read(
            source,
            split=self.split,
            layout=self.format,
            columns=self.columns,
            on_bad_row=self.on_bad_row,
            control=control,
        )
