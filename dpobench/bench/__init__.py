"""Measuring ourselves: our step and our sweep beside a peer's on the same work."""

__all__ = ["run"]
