"""Documents of tasks whose files no loader of `datasets` reads as they are."""

from datasets import Dataset, DatasetDict


def labelled(documents: str, labels: str, split: str = "validation", **_: object) -> DatasetDict:
    """JSON lines with their labels in a second file.

    Args:
        documents: file of JSON lines, one document each.
        labels: file of as many lines, one whole number each.
        split: name of the split of the data set that holds them.

    Raises:
        ValueError: the files differ in their number of lines.
    """
    table = Dataset.from_json(documents, keep_in_memory=True)
    with open(labels, encoding="utf-8") as lines:
        numbers = [int(line) for line in lines if line.strip()]
    if len(numbers) != len(table):
        raise ValueError(f"{documents} has {len(table)} documents, {labels} {len(numbers)} labels")
    return DatasetDict({split: table.add_column("label", numbers)})
