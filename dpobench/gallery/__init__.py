"""Portraits of losses: the list, curves, plots, and a file to start from."""

__all__ = ["portrait", "starter"]
