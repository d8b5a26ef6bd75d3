"""What lies on disk: files that are whole or absent, typed records, scores, and where a number came from."""

__all__ = ["code_hash", "files", "provenance", "records", "scores", "settings"]
