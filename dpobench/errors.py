"""Every error this package raises on purpose, and the one way it says what was possible.

DpobenchError          anything below; catch this to catch them all
├── UserError          a mistake the user can mend; printed without a traceback, exit status 2
│   ├── UnknownName    a name nobody registered; carries the nearest known one
│   ├── BadRow         a row of data that cannot be used; names file, row and column
│   └── PluginRefused  a plugin that breaks its declaration; names the law
├── Locked             another process holds the results folder; exit status 3
├── Damaged            a stored file does not match its recorded hash
└── Diverged           a run met a value that is not finite; carries the step
"""

import difflib
from collections.abc import Iterable


class DpobenchError(Exception):
    """Base of every error raised on purpose.

    Example:
        >>> DpobenchError("every run failed").exit_code
        1
    """

    exit_code = 1


class UserError(DpobenchError):
    """A mistake the user can mend. The message names the value, what was possible and the next step.

    Example:
        >>> print(UnknownName("variant", "dppo", ["dpo", "ipo"]))
        no variant is called 'dppo'. Did you mean 'dpo'? Known: dpo, ipo.
    """

    exit_code = 2


class UnknownName(UserError):
    """A name nobody registered."""

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = "") -> None:
        known = sorted(known)
        nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        guess = f" Did you mean {nearest[0]!r}?" if nearest else ""
        super().__init__(f"no {kind} is called {name!r}.{guess} Known: {', '.join(known) or 'none'}.{hint}")


class BadRow(UserError):
    """A row of data that cannot be used.

    Args:
        where: file or data set, as the user named it.
        row: 0-based row number in it.
        column: the column at fault.
        found: what stood there.
        remedy: what to do about it.
    """

    def __init__(self, where: str, row: int, column: str, found: str, remedy: str) -> None:
        super().__init__(f'{where} row {row}: "{column}" {found}; {remedy}')
        self.where, self.row, self.column = where, row, column


class PluginRefused(UserError):
    """A plugin that breaks its declaration or the contract."""


class Locked(DpobenchError):
    """Another process holds the results folder."""

    exit_code = 3


class Damaged(DpobenchError):
    """A stored file does not match the size or hash recorded for it."""

    exit_code = 2


class Diverged(DpobenchError):
    """A run met a loss or gradient that is not finite."""

    def __init__(self, step: int, what: str) -> None:
        super().__init__(f"{what} is not finite at step {step}")
        self.step, self.what = step, what
