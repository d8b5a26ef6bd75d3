"""Settings of where preference pairs come from."""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from dpobench.artifacts.settings import Settings
from dpobench.data.check import DataReport
from dpobench.data.reading import read


class Data(Settings):
    """Where preference pairs come from and how they are read.

    Args:
        source: file, folder or hub name of the training pairs.
        heldout: the same for held-out pairs; without it a share of the prompts of `source` is held out.
        prompts: file of further held-out prompts; without it those of the held-out pairs.
        split: split of a hub or saved data set.
        heldout_share: share of the prompts, in (0, 1), held out where `heldout` is not given.
        format: layout, where it is not to be detected.
        columns: our name of a column -> its name in the file.
        template: "auto" (the tokenizer's chat template if it has one, else "plain"), "plain" or a Jinja file.
        on_bad_row: "error": the first malformed row ends the program; "drop": such rows are left out and counted.
        most_lost: share of the rows, from 0 to 1, that may be left out because their prompt is too long or the template
            refuses it.
        limit: the most training pairs that are used, the first by hash.
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

    def read(self, source: str, control_tokens: Sequence[str]) -> DataReport:
        """Read preference pairs as these settings say.

        Args:
            source: file, folder or hub name.
            control_tokens: texts the tokenizer would read as control tokens, to be counted in the data.

        Raises:
            UserError: the source cannot be read, or a row is malformed and `on_bad_row` is "error".
        """
        return read(
            source,
            split=self.split,
            layout=self.format,
            columns=self.columns,
            on_bad_row=self.on_bad_row,
            control_tokens=control_tokens,
        )
