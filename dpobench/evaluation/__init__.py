"""Scoring a checkpoint: answers are drawn once, then every evaluator gives its rows."""

__all__ = [
    "annotations",
    "benchmark_tasks",
    "heldout",
    "judge_cache",
    "objectives",
    "pairwise",
    "plan",
    "registry",
    "score",
    "settings",
    "spec",
    "table_cache",
]
