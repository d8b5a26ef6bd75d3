"""Comparisons of two answers: read from files or the hub, checked, divided by prompt, tokenised once."""

__all__ = [
    "check",
    "perturb",
    "prompts",
    "reading",
    "rows",
    "settings",
    "split",
    "template",
    "tokenise",
    "tokens",
]
