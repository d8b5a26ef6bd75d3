"""What lies on disk: files that are whole or absent, scores, and where a number came from."""

__all__ = ["code_hash", "files", "provenance", "scores", "settings"]
