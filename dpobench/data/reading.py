"""From a source to typed rows: comparisons, or prompts alone."""

from collections.abc import Collection, Mapping
from dataclasses import replace

from dpobench.data.check import DataReport, examine
from dpobench.data.files import load
from dpobench.data.layouts import OnBadRow, convert
from dpobench.data.messages import Place
from dpobench.data.rows import Message


def read(
    source: str,
    *,
    split: str | None = None,
    subset: str | None = None,
    layout: str | None = None,
    columns: Mapping[str, str] | None = None,
    on_bad_row: OnBadRow = "error",
    control_tokens: Collection[str] = (),
) -> DataReport:
    """Read, convert and examine a data set; `report.require_usable().rows` are the rows to use.

    Args:
        source: file, saved folder or hub name; see `load`.
        split: of a saved or hub data set.
        subset: configuration name of a hub data set.
        layout: one of `LAYOUTS`; detected if None.
        columns: our name -> the name in the data.
        on_bad_row: whether a malformed row is an error or is left out and counted.
        control_tokens: texts the tokenizer would read as control tokens, to be counted; see `template.control_tokens`.

    Raises:
        UserError: the source cannot be read, or a row is malformed.

    Example:
        >>> rows = read("pairs.jsonl", columns={"prompt": "question"}).require_usable().rows  # doctest: +SKIP
    """
    raw, name = load(source, split=split, subset=subset)
    converted = convert(raw, name, layout=layout, columns=columns, on_bad_row=on_bad_row)
    report = examine(
        converted.rows,
        name=name,
        layout=converted.layout,
        problems=converted.problems,
        control_tokens=control_tokens,
        drop_wrong_roles=on_bad_row == "drop",
    )
    return replace(report, columns=converted.columns, ignored=converted.ignored)


def read_dialogues(source: str) -> list[tuple[Message, ...]]:
    """Read prompts to answer from the column `prompt` of a file: text, or messages of which the last is the user's.

    Args:
        source: file, saved folder or hub name; see `load`.

    Returns: the turns of each prompt, in the order of the rows.

    Raises:
        UserError: the source cannot be read, or a row is malformed.
    """
    raw, name = load(source)
    dialogues = []
    for number, row in enumerate(raw):
        place = Place(name, number)
        prompt = place.cell(row, "prompt")
        if isinstance(prompt, list | Mapping):
            turns = place.turns("prompt", prompt)
            if turns[-1]["role"] != "user":
                raise place.bad("prompt", f"ends with role {turns[-1]['role']}", "the last message must be the user's")
        else:
            text = place.text("prompt", prompt)
            if not text.strip():
                raise place.bad("prompt", "is empty", "write a prompt, or remove the row")
            turns = [{"role": "user", "content": text}]
        dialogues.append(tuple(turns))
    return dialogues
