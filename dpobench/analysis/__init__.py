"""From an experiment folder to estimates and decisions; nothing is drawn here."""

__all__ = ["components", "documents", "findings", "points", "power", "results"]
