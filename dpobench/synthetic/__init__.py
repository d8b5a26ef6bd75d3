"""The embedded default: a small world in which the truth is known, built and cached on first use."""

__all__ = ["abilities", "embedded"]
