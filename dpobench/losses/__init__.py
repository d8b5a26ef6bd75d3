"""The contract of a loss: what it is given, what it declares, and where it is found."""

__all__ = ["mixture", "pairs", "quantities", "registry", "spec", "standalone", "variant"]
