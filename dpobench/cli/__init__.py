"""The commands."""

__all__ = ["commands"]
