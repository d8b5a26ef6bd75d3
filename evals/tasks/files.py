"""Documents of tasks whose files no loader of `datasets` reads as they are."""

from typing import Any

from datasets import Dataset, DatasetDict


def labelled(documents: str, labels: str, split: str = "validation", **_: Any) -> DatasetDict:
    """JSON lines with their labels in a second file.

    Args:
        documents: JSON lines, one document each.
        labels: as many lines, one whole number each.
        split: what the documents are called.

    Raises:
        ValueError: the files differ in their number of lines.
    """
    found = Dataset.from_json(documents, keep_in_memory=True)
    with open(labels, encoding="utf-8") as lines:
        numbers = [int(line) for line in lines if line.strip()]
    if len(numbers) != len(found):
        raise ValueError(f"{documents} has {len(found)} documents, {labels} {len(numbers)} labels")
    return DatasetDict({split: found.add_column("label", numbers)})
