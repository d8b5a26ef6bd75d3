"""Planning an experiment, preparing what its runs share, executing them anywhere, and resuming."""

__all__ = ["allocator", "events", "external", "job", "plan", "preview", "run", "status", "workers"]
