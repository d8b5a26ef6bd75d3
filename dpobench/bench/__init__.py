"""Speed and memory of our training step and of a whole sweep against TRL's on the same work."""

__all__ = ["run", "suites"]
