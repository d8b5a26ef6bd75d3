"""What judges replied, kept by content, so that nothing is paid for twice; and an account of what was spent.

One sqlite file serves many processes at a time and survives being killed. Keys are hashes of content (weights or model string,
template, decoding, prompt, answers), never of paths. Replies are kept raw: another way of reading them needs no new call.
"""

import contextlib
import fcntl
import hashlib
import json
import logging
import math
import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpobench.errors import UserError

Reply = dict[str, Any]
_TABLES = (
    "CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, reply TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS accounts (name TEXT PRIMARY KEY, requests INTEGER NOT NULL, tokens INTEGER NOT NULL,"
    " cost REAL NOT NULL)",
)
# Fewer than sqlite's own limit on the values of one statement.
_AT_ONCE = 500
_PATIENCE = 120.0


@dataclass(frozen=True)
class Spent:
    """What an account has spent.

    Args:
        requests: calls made.
        tokens: read and written, by the server's count.
        cost: in the currency of the prices given.
    """

    requests: int = 0
    tokens: int = 0
    cost: float = 0.0


@dataclass(frozen=True)
class Limits:
    """What an account may spend in all; infinite where nothing is said."""

    requests: float = math.inf
    tokens: float = math.inf
    cost: float = math.inf


class Replies:
    """A store of replies and the account that pays for them; safe for many threads and processes.

    The file must lie on a disk of this machine: sqlite's log in shared memory does not work over a network.

    Args:
        file: where it lies; None keeps everything in memory.
        account: whose spending is counted, for example the experiment's folder.
    """

    def __init__(self, file: Path | None, account: str) -> None:
        self.file, self.account = file, account
        self._lock = threading.RLock()
        self._open: tuple[int, sqlite3.Connection] | None = None

    def get(self, keys: Iterable[str]) -> dict[str, Reply]:
        """The replies that are known, by key."""
        wanted = list(dict.fromkeys(keys))
        found: dict[str, Reply] = {}

        def read(connection: sqlite3.Connection) -> None:
            for start in range(0, len(wanted), _AT_ONCE):
                part = wanted[start : start + _AT_ONCE]
                query = f"SELECT key, reply FROM replies WHERE key IN ({','.join('?' * len(part))})"
                found.update({name: json.loads(reply) for name, reply in connection.execute(query, part)})

        self._do(read)
        return found

    def put(self, mapping: Mapping[str, Reply]) -> None:
        """Keep replies, all or none of them; what was known under a key is replaced."""
        rows = [(key, json.dumps(reply)) for key, reply in mapping.items()]

        def write(connection: sqlite3.Connection) -> None:
            with _transaction(connection):
                connection.executemany("INSERT OR REPLACE INTO replies VALUES (?, ?)", rows)

        if rows:
            self._do(write)

    def spent(self) -> Spent:
        """What the account has spent so far, over all processes and restarts."""
        found: Spent = self._do(lambda connection: _spent(connection, self.account))
        return found

    def charge(self, requests: int = 0, tokens: int = 0, cost: float = 0.0, limits: Limits | None = None) -> Spent:
        """Put an amount on the account, or refuse before a limit would be passed.

        Charge an estimate before a call, and the difference to what it came to afterwards, without limits; differences may be negative.

        Returns: what is spent now.

        Raises:
            UserError: the amount would pass a limit; nothing was charged.
        """
        more = Spent(requests, tokens, cost)

        def add(connection: sqlite3.Connection) -> Spent:
            with _transaction(connection):
                before = _spent(connection, self.account)
                _refuse(before, more, limits or Limits())
                after = Spent(before.requests + requests, before.tokens + tokens, before.cost + cost)
                row = (self.account, after.requests, after.tokens, after.cost)
                connection.execute("INSERT OR REPLACE INTO accounts VALUES (?, ?, ?, ?)", row)
            return after

        after: Spent = self._do(add)
        return after

    def answered(
        self,
        keys: Sequence[str],
        ask: Callable[[list[int]], Iterable[tuple[int, Reply]]],
        good: Callable[[Reply], bool] = lambda reply: True,
        most: int = 2,
    ) -> list[Reply | None]:
        """Replies to a list of questions; only what is not known is asked, and every reply is kept as it comes.

        A question whose kept reply is not good is asked again, until `most` replies were had in all: asking twice for a reply
        that cannot be read, and never a third time, whichever process comes back to it.

        Args:
            keys: of each question; equal keys are one question.
            ask: given the places of the questions to ask in `keys`, yields place and reply, in any order. A place it leaves out
                has no reply (an error of the moment), which is not kept.
            good: whether a reply can be used.
            most: replies had to one question before it is left as it is.

        Returns: the last reply to each question; None where there is none.
        """
        known = self.get(keys)
        asked: dict[str, int] = {}
        for place, key in enumerate(keys):
            kept = known.get(key)
            if kept is None or (not good(kept["reply"]) and kept["count"] < most):
                asked.setdefault(key, place)
        for place, reply in ask(list(asked.values())) if asked else ():
            had = known.get(keys[place], {"count": 0})["count"]
            known[keys[place]] = {"reply": reply, "count": had + 1}
            self.put({keys[place]: known[keys[place]]})
        return [known[key]["reply"] if key in known else None for key in keys]

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            if self._open is not None and self._open[0] == os.getpid():
                self._open[1].close()
            self._open = None

    def _do(self, work: Callable[[sqlite3.Connection], Any]) -> Any:
        with self._lock:
            try:
                return work(self._connection())
            except sqlite3.OperationalError as error:
                raise UserError(f"{self.file}: {error}; free the disk, or name another cache folder") from error
            except sqlite3.DatabaseError as error:
                self._move_aside(error)
                return work(self._connection())

    def _connection(self) -> sqlite3.Connection:
        # A connection must not be carried into a forked process.
        if self._open is None or self._open[0] != os.getpid():
            if self.file is not None:
                self.file.parent.mkdir(parents=True, exist_ok=True)
            place = ":memory:" if self.file is None else str(self.file)
            made = sqlite3.connect(place, timeout=_PATIENCE, isolation_level=None, check_same_thread=False)
            self._open = (os.getpid(), made)
            made.execute("PRAGMA journal_mode=WAL")
            made.execute("PRAGMA synchronous=NORMAL")
            for table in _TABLES:
                made.execute(table)
        return self._open[1]

    def _move_aside(self, error: Exception) -> None:
        """Begin a new file beside the damaged one, unless another process has done so already."""
        assert self.file is not None
        self.close()
        with self.file.with_name(f"{self.file.name}.lock").open("a") as gate:
            fcntl.flock(gate, fcntl.LOCK_EX)
            if _is_whole(self.file):
                return
            number = 1
            while (aside := self.file.with_name(f"{self.file.name}.damaged-{number}")).exists():
                number += 1
            self.file.rename(aside)
            for tail in ("-wal", "-shm"):
                self.file.with_name(self.file.name + tail).unlink(missing_ok=True)
        logging.getLogger("dpobench").warning(
            "%s is damaged (%s); moved to %s, a new one begins: replies are asked again, and spending is counted from zero",
            self.file, error, aside.name,
        )  # fmt: skip


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _spent(connection: sqlite3.Connection, account: str) -> Spent:
    row = connection.execute("SELECT requests, tokens, cost FROM accounts WHERE name = ?", (account,)).fetchone()
    return Spent(*row) if row else Spent()


def _refuse(before: Spent, more: Spent, limits: Limits) -> None:
    for what in ("requests", "tokens", "cost"):
        limit, spent, asked = getattr(limits, what), getattr(before, what), getattr(more, what)
        if spent + asked > limit:
            raise UserError(
                f"the judge's budget of {limit:g} {what} is used up: {spent:g} spent, {asked:g} more needed for the next call. "
                "Raise the limit in evaluation.judge_settings and run again: replies so far are kept and cost nothing"
            )


def _is_whole(file: Path) -> bool:
    if not file.is_file():
        return True
    try:
        with contextlib.closing(sqlite3.connect(file, timeout=_PATIENCE)) as connection:
            return bool(connection.execute("PRAGMA quick_check").fetchone()[0] == "ok")
    except sqlite3.DatabaseError:
        return False


def key(**content: Any) -> str:
    """Content key of a question, 64 hexadecimal digits. Content is text, numbers, lists and mappings; a path is refused.

    Raises:
        TypeError: something else is among it.
    """
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


_current = Replies(None, "")


def use(file: Path | None, account: str) -> None:
    """Choose this process's store; a judge finds it by `current`."""
    global _current
    if (_current.file, _current.account) != (file, account):
        _current.close()
        _current = Replies(file, account)


def current() -> Replies:
    """This process's store; one in memory where `use` was never called."""
    return _current
