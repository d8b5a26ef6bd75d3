"""Finding plugins of any kind and checking what they declare."""

__all__ = ["plugin", "registry"]
