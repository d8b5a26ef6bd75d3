"""Settings of a judge behind an endpoint: how requests are sent, and what may be spent; checked before anything is sent."""

import difflib
import math
import re
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from dpobench import UserError
from dpobench.evaluation.judge_cache import Limits
from dpobench.evaluation.settings import SettingsTable

_Settings = TypeVar("_Settings", "Calls", "Budget")


@dataclass(frozen=True)
class Calls:
    """How requests are sent to the endpoint.

    Args:
        key: environment variable that holds the API key; empty where the server wants none.
        concurrency: requests under way at a time, of each process.
        timeout: seconds before a request is given up.
        tries: requests for one reply before the comparison is left without a verdict.
        shortest_wait: seconds before the second try; doubled for each further one, less a random part of up to a half.
        longest_wait: seconds, also where the server asks for more.
        reply_tokens: where a reply in words is cut.
        seed: sent along; the second request after a reply that cannot be read has the next one.
        mode: "logprobs", "text", or "auto" to decide by one request.
    """

    key: str = "OPENAI_API_KEY"
    concurrency: int = 8
    timeout: float = 60.0
    tries: int = 6
    shortest_wait: float = 1.0
    longest_wait: float = 60.0
    reply_tokens: int = 512
    seed: int = 0
    mode: str = "auto"

    def __post_init__(self) -> None:
        at_least = {
            "concurrency": 1,
            "timeout": 1e-3,
            "tries": 1,
            "shortest_wait": 0,
            "longest_wait": 0,
            "reply_tokens": 8,
        }
        for name, least in at_least.items():
            if not least <= getattr(self, name) < math.inf:
                raise UserError(f"judge setting calls.{name} = {getattr(self, name)!r}: at least {least:g} is expected")
        # Not shown: somebody may have put the key itself here.
        if self.key and not re.fullmatch(r"[A-Za-z_]\w{0,39}", self.key):
            raise UserError(
                "judge setting calls.key is no name of an environment variable; put the key into one and name that"
            )
        if self.mode not in ("auto", "text", "logprobs"):
            raise UserError(f"judge setting calls.mode = {self.mode!r}: auto, text or logprobs is expected")


@dataclass(frozen=True)
class Budget:
    """What may be spent in all by one experiment, over restarts.

    Args:
        max_requests: calls, those that failed included.
        max_tokens: read and written, by the server's count; its largest possible value where the server does not count.
        max_cost: in the currency of the prices.
        price_input: of a million tokens read.
        price_output: of a million tokens written.
    """

    max_requests: float = math.inf
    max_tokens: float = math.inf
    max_cost: float = math.inf
    price_input: float = 0.0
    price_output: float = 0.0

    def __post_init__(self) -> None:
        for setting in fields(self):
            value = getattr(self, setting.name)
            if not value >= 0:
                raise UserError(f"judge setting budget.{setting.name} = {value!r}: 0 or more is expected")
        if math.isfinite(self.max_cost) and not self.price_input + self.price_output:
            raise UserError(
                f"judge setting budget.max_cost = {self.max_cost:g}: without price_input and price_output (per million tokens) "
                "nothing would count against it; give both"
            )

    @property
    def limits(self) -> Limits:
        """As the account takes them."""
        return Limits(self.max_requests, self.max_tokens, self.max_cost)

    def cost(self, read: float, wrote: float) -> float:
        """Price of so many tokens."""
        return (read * self.price_input + wrote * self.price_output) / 1e6


def settings_group(kind: type[_Settings], table: SettingsTable | None, name: str) -> _Settings:
    """A group of settings, its numbers with the types of the defaults.

    Args:
        kind: `Calls` or `Budget`.
        table: the settings that are not the defaults, by name.
        name: of the group, for messages.

    Raises:
        UserError: an unknown name, a wrong type or a value out of range.
    """
    if not isinstance(table or {}, Mapping):
        raise UserError(f"judge setting {name} = {table!r}: a table is expected")
    types: dict[str, type] = {setting.name: type(setting.default) for setting in fields(kind)}
    values: dict[str, Any] = {}
    for key, value in (table or {}).items():
        if key not in types:
            near = difflib.get_close_matches(key, types, n=1, cutoff=0.5)
            guess = f" Did you mean {near[0]!r}?" if near else ""
            raise UserError(f"no judge setting is called '{name}.{key}'.{guess} Known: {', '.join(sorted(types))}.")
        expected = types[key]
        number = expected is float and type(value) is int
        if not number and type(value) is not expected:
            raise UserError(f"judge setting {name}.{key} = {value!r}: a {expected.__name__} is expected")
        values[key] = expected(value)
    return kind(**values)


def checked_address(base_url: str) -> str:
    """The server's address as it may be shown and stored.

    Raises:
        UserError: it is empty, no web address, or holds a name, a password or a query, where keys hide.
    """
    try:
        parts = urllib.parse.urlsplit(base_url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise UserError("the judge's base_url is no web address; write for example http://127.0.0.1:8000/v1") from None
    if parts.scheme not in ("http", "https") or not host:
        raise UserError("the judge needs a server: set base_url to its address, for example http://127.0.0.1:8000/v1")
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise UserError(
            f"the judge's base_url (on {host}) holds more than an address; put the key into an environment variable and name it "
            "by the setting calls.key"
        )
    return f"{parts.scheme}://{host}{f':{port}' if port else ''}{parts.path.rstrip('/')}"
