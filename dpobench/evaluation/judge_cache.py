"""A cache of judges' replies by content, so that nothing is paid for twice; and an account of the spending.

One sqlite file serves many processes at a time and survives being killed. Keys are hashes of content (weights or model string,
template, decoding, prompt, answers), never of paths. Replies are stored raw: another way of reading them needs no new call.
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
from typing import TypeAlias, TypedDict, TypeVar, cast

from pydantic import JsonValue

from dpobench.errors import UserError

Entry: TypeAlias = Mapping[str, JsonValue]
"""What the file holds under a key."""
ReplyT = TypeVar("ReplyT", bound=Mapping[str, object])
T = TypeVar("T")
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
    """The spending of an account.

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
    """What an account may spend in all, in the units of `Spent`; infinite by default."""

    requests: float = math.inf
    tokens: float = math.inf
    cost: float = math.inf


class _Asked(TypedDict):
    """An entry of `Replies.get_or_ask`: the last reply to a question, and how many there were."""

    reply: Mapping[str, object]
    count: int


class Replies:
    """A cache of replies and the account that pays for them; safe for many threads and processes.

    The file must lie on a disk of this machine: sqlite's log in shared memory does not work over a network.

    Args:
        file: where it lies; None keeps everything in memory.
        account: whose spending is counted, for example the experiment's folder.
    """

    def __init__(self, file: Path | None, account: str) -> None:
        self.file, self.account = file, account
        self._lock = threading.RLock()
        self._open: tuple[int, sqlite3.Connection] | None = None

    def get(self, keys: Iterable[str]) -> dict[str, Entry]:
        """The entries that the cache holds, by key."""
        distinct = list(dict.fromkeys(keys))

        def read(connection: sqlite3.Connection) -> dict[str, Entry]:
            entries: dict[str, Entry] = {}
            for start in range(0, len(distinct), _AT_ONCE):
                part = distinct[start : start + _AT_ONCE]
                query = f"SELECT key, reply FROM replies WHERE key IN ({','.join('?' * len(part))})"
                entries.update({name: json.loads(entry) for name, entry in connection.execute(query, part)})
            return entries

        return self._do(read)

    def put(self, entries: Mapping[str, Mapping[str, object]]) -> None:
        """Store entries, all or none of them; an earlier entry under the same key is replaced.

        Args:
            entries: by key; each in a form that JSON can hold.
        """
        rows = [(key, json.dumps(entry)) for key, entry in entries.items()]

        def write(connection: sqlite3.Connection) -> None:
            with _transaction(connection):
                connection.executemany("INSERT OR REPLACE INTO replies VALUES (?, ?)", rows)

        if rows:
            self._do(write)

    def spent(self) -> Spent:
        """The account's spending so far, over all processes and restarts."""
        return self._do(lambda connection: _spent(connection, self.account))

    def charge(self, requests: int = 0, tokens: int = 0, cost: float = 0.0, limits: Limits | None = None) -> Spent:
        """Put an amount on the account, or refuse before a limit would be passed.

        Charge an estimate before a call, and the difference to the true amount after it, without limits; differences may be negative.

        Args:
            requests: calls.
            tokens: read and written.
            cost: in the currency of the prices.
            limits: which the account must not pass; None for none.

        Returns: the account's spending with this amount.

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

        return self._do(add)

    def counts(self, keys: Sequence[str]) -> list[int]:
        """How many replies there were to each question of `get_or_ask` so far."""
        entries = cast(dict[str, _Asked], self.get(keys))
        return [entries[key]["count"] if key in entries else 0 for key in keys]

    def get_or_ask(
        self,
        keys: Sequence[str],
        ask: Callable[[list[int]], Iterable[tuple[int, ReplyT]]],
        usable: Callable[[ReplyT], bool] = lambda reply: True,
        most: int = 2,
    ) -> list[ReplyT | None]:
        """Replies to a list of questions; only what the cache does not hold is requested, and every reply is stored as it comes.

        A question whose cached reply is not usable is requested again, until there were `most` replies in all: twice for a reply
        that cannot be read, and never a third time, whichever process comes back to it.

        Args:
            keys: of each question; equal keys are one question.
            ask: given the places in `keys` of the questions to ask, yields place and reply, in any order. A place it leaves out
                has no reply (an error of the moment), and nothing is stored for it.
            usable: whether a reply can be read.
            most: replies to one question before it is left as it is.

        Returns: the last reply to each question; None where there is none.
        """
        cached = cast(dict[str, _Asked], self.get(keys))
        to_ask: dict[str, int] = {}
        for place, key in enumerate(keys):
            entry = cached.get(key)
            if entry is None or (not usable(cast(ReplyT, entry["reply"])) and entry["count"] < most):
                to_ask.setdefault(key, place)
        for place, reply in ask(list(to_ask.values())) if to_ask else ():
            earlier = cached.get(keys[place])
            cached[keys[place]] = {"reply": reply, "count": 1 + (earlier["count"] if earlier else 0)}
            self.put({keys[place]: cached[keys[place]]})
        return [cast(ReplyT, cached[key]["reply"]) if key in cached else None for key in keys]

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            if self._open is not None and self._open[0] == os.getpid():
                self._open[1].close()
            self._open = None

    def _do(self, work: Callable[[sqlite3.Connection], T]) -> T:
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
            connection = sqlite3.connect(place, timeout=_PATIENCE, isolation_level=None, check_same_thread=False)
            self._open = (os.getpid(), connection)
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")
            for table in _TABLES:
                connection.execute(table)
        return self._open[1]

    def _move_aside(self, error: Exception) -> None:
        """Begin a new file in place of the damaged one, unless another process has done so already."""
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
            "%s is damaged (%s); moved to %s, a new one begins: replies are requested again, and spending is counted from zero",
            self.file,
            error,
            aside.name,
        )


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
    for unit in ("requests", "tokens", "cost"):
        limit, spent, needed = getattr(limits, unit), getattr(before, unit), getattr(more, unit)
        if spent + needed > limit:
            raise UserError(
                f"the judge's budget of {limit:g} {unit} is used up: {spent:g} spent, {needed:g} more needed for the next call. "
                "Raise the limit in evaluation.judge_settings and run again: replies so far are cached and cost nothing"
            )


def _is_whole(file: Path) -> bool:
    if not file.is_file():
        return True
    try:
        with contextlib.closing(sqlite3.connect(file, timeout=_PATIENCE)) as connection:
            return bool(connection.execute("PRAGMA quick_check").fetchone()[0] == "ok")
    except sqlite3.DatabaseError:
        return False


def key(**content: object) -> str:
    """Content key of a question, 64 hexadecimal digits.

    Args:
        content: all that decides the reply: text, numbers, lists and mappings of them; never a path.

    Raises:
        TypeError: a value is none of these, for example a path.
    """
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


_current = Replies(None, "")


def use(file: Path | None, account: str) -> None:
    """Choose this process's cache; judges get it by `current`.

    Args:
        file: where it lies; None keeps everything in memory.
        account: whose spending is counted.
    """
    global _current
    if (_current.file, _current.account) != (file, account):
        _current.close()
        _current = Replies(file, account)


def current() -> Replies:
    """This process's cache; one in memory where `use` was never called."""
    return _current
