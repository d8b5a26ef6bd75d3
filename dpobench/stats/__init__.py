"""Statistics: pure functions of arrays. The unit is the prompt; seeds are a second, crossed source of chance."""

__all__ = [
    "compare",
    "components",
    "crossed",
    "length",
    "paired",
    "power",
    "reliability",
    "resample",
    "tournament",
    "tradeoff",
]
