"""The laws a preference loss must keep, verified on a few small batches before anything is trained.

What `@loss(...)` declares is not believed but tried: `check` tells what became of every law, `require` refuses a loss that
breaks one. A loss of a few lines takes some milliseconds.
"""

from dpobench.testing.laws import Law, check, require

__all__ = ["Law", "check", "require"]
