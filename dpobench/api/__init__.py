"""The public functions: start an experiment, read one in pandas, compare two."""

__all__ = ["results", "start"]
