"""One request to an OpenAI-compatible server: paid for before it is sent, tried again while it may help, read to a bound."""

import difflib
import email.utils
import functools
import json
import logging
import math
import os
import random
import re
import threading
import time
import urllib.parse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from dpobench import UserError
from dpobench.evals.judges._comparison import kept, same_model
from dpobench.evaluation.judge_cache import Limits, Replies

# No reply to a request for one verdict is longer than this, bytes.
LARGEST = 1 << 20
_AGAIN = frozenset({408, 409, 425, 429})
# Servers and models of which it was said already that they are not those asked for.
_TOLD: set[tuple[str, str]] = set()
_Settings = TypeVar("_Settings")


@dataclass(frozen=True)
class Calls:
    """How the endpoint is asked.

    Args:
        key: environment variable that holds the API key; empty where the server wants none.
        concurrency: requests under way at a time, of each process.
        timeout: seconds before a request is given up.
        tries: requests for one reply before the comparison is left without a verdict.
        shortest_wait: seconds before the second try; doubled for each further one, less a random part of up to a half.
        longest_wait: seconds, also where the server asks for more.
        reply_tokens: where a reply in words is cut.
        seed: sent along; the second question after a reply that cannot be read has the next one.
        mode: "logprobs", "text", or "auto" to find out by one request.
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
        for one in fields(self):
            if not getattr(self, one.name) >= 0:
                raise UserError(f"judge setting budget.{one.name} = {getattr(self, one.name)!r}: 0 or more is expected")
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


def group(kind: type[_Settings], given: Any, name: str) -> _Settings:
    """A group of settings, its numbers with the types of the defaults.

    Raises:
        UserError: an unknown name, a wrong type or a value out of range.
    """
    if not isinstance(given or {}, Mapping):
        raise UserError(f"judge setting {name} = {given!r}: a table is expected")
    known: dict[str, Any] = {one.name: type(one.default) for one in fields(kind)}  # type: ignore[arg-type]
    taken: dict[str, Any] = {}
    for key, value in (given or {}).items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            guess = f" Did you mean {near[0]!r}?" if near else ""
            raise UserError(f"no judge setting is called '{name}.{key}'.{guess} Known: {', '.join(sorted(known))}.")
        wanted = known[key]
        number = wanted is float and type(value) is int
        if not number and type(value) is not wanted:
            raise UserError(f"judge setting {name}.{key} = {value!r}: a {wanted.__name__} is expected")
        taken[key] = wanted(value)
    return kind(**taken)


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


@dataclass(frozen=True)
class Answer:
    """What came of one question.

    Args:
        raw: the reply, or what went wrong.
        failed: whether there is no reply.
        status: HTTP status of a refusal; 0 otherwise.
        tokens: read and written.
        latency: seconds of the request that was answered.
        cost: of it.
    """

    raw: str
    failed: bool = False
    status: int = 0
    tokens: int = 0
    latency: float = 0.0
    cost: float = 0.0


class _Lost(Exception):
    """A try that may go better the next time."""

    def __init__(self, why: str, wait: float = 0.0, billed: bool = True) -> None:
        super().__init__(why)
        self.wait, self.billed = wait, billed


@dataclass
class Endpoint:
    """An OpenAI-compatible server.

    Args:
        base_url: its address.
        model: what it calls the model.
        calls: how it is asked.
        budget: what may be spent.
        replies: whose account pays.
    """

    base_url: str
    model: str
    calls: Calls
    budget: Budget
    replies: Replies
    stopped: threading.Event = field(default_factory=threading.Event)
    _chance: random.Random = field(default_factory=random.Random)

    @functools.cached_property
    def _key(self) -> str:
        if not self.calls.key:
            return ""
        if not (found := os.environ.get(self.calls.key, "").strip()):  # in lower case it may be the key itself
            shown = f" {self.calls.key}" if self.calls.key.isupper() else " that calls.key names"
            raise UserError(
                f"the judge's API key is missing: set the environment variable{shown}, name another one by calls.key, "
                'or set calls.key to "" for a server that wants none'
            )
        return found

    @functools.cached_property
    def client(self) -> Any:
        """The client of the openai package, which itself never tries again."""
        try:
            import openai
        except ImportError as error:
            raise UserError("this judge needs the openai package: pip install dpobench[api]") from error
        return openai.OpenAI(
            api_key=self._key or "none", base_url=self.base_url, timeout=self.calls.timeout, max_retries=0
        )

    def ready(self) -> None:
        """Make the client; call it before threads do.

        Raises:
            UserError: there is no key, or no openai package.
        """
        _ = self.client

    def close(self) -> None:
        """Let go of all connections."""
        self.stopped.set()
        if "client" in vars(self):
            self.client.close()

    def clean(self, text: str) -> str:
        """A server's text as it can be stored, without the key should the server repeat it."""
        text = text.encode("utf-8", errors="replace").decode()
        return text.replace(self._key, "[key]") if self._key else text

    def answer(self, request: Mapping[str, Any]) -> Answer:
        """Ask, again after failures that may pass; other refusals are returned with their status.

        Raises:
            UserError: the budget does not allow another request, the key is refused, or the model is unknown.
        """
        why = ""
        for number in range(self.calls.tries):
            if self.stopped.is_set():
                return Answer(f"stopped; {why}", failed=True)
            try:
                return self._paid(request)
            except _Lost as lost:
                why = self.clean(str(lost))
                wait = self.calls.shortest_wait * 2**number * self._chance.uniform(0.5, 1.0)
                wait = min(max(wait, lost.wait), self.calls.longest_wait)
            if number + 1 < self.calls.tries:
                self.stopped.wait(wait)
        return Answer(f"gave up after {self.calls.tries} tries: {why}", failed=True)

    def _paid(self, request: Mapping[str, Any]) -> Answer:
        """One request: the most it can use is charged before it is sent, and what it did not use is given back."""
        read = 64 + sum(len(turn["content"].encode()) for turn in request["messages"])
        wrote = request.get("max_tokens", request.get("max_completion_tokens", 0))
        most = self.budget.cost(read, wrote)
        self.replies.charge(1, read + wrote, most, self.budget.limits)
        began = time.monotonic()
        try:
            status, content = self._sent(request)
        except _Lost as lost:
            if not lost.billed:
                self.replies.charge(0, -(read + wrote), -most)
            raise
        latency = time.monotonic() - began
        if status:
            self.replies.charge(0, -(read + wrote), -most)
            return Answer(self.clean(content), failed=True, status=status)
        if len(content) > LARGEST:
            return Answer(f"a reply of more than {LARGEST:,} bytes", tokens=read + wrote, latency=latency, cost=most)
        raw, usage, model = _unpacked(content, wants_logprobs=bool(request.get("logprobs")))
        self._compare_models(model)
        read_really, wrote_really = usage or (read, wrote)
        cost = self.budget.cost(read_really, wrote_really)
        self.replies.charge(0, read_really + wrote_really - read - wrote, cost - most)
        return Answer(self.clean(raw), tokens=read_really + wrote_really, latency=latency, cost=cost)

    def _sent(self, request: Mapping[str, Any]) -> tuple[int, str]:
        """Send once.

        Returns: 0 and the body, of which at most a little over `LARGEST` bytes are read; or the status of a refusal and its text.
        """
        import httpx2
        import openai

        deadline = time.monotonic() + self.calls.timeout
        body = b""
        try:
            with self.client.chat.completions.with_streaming_response.create(**request) as response:
                for piece in response.iter_bytes():
                    body += piece
                    if len(body) > LARGEST:
                        break
                    if time.monotonic() > deadline:
                        raise _Lost(f"no whole reply in {self.calls.timeout:g} s")
        except openai.APIStatusError as error:
            return self._refused(error)
        except openai.APIConnectionError as error:
            unsent = isinstance(error.__cause__, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.PoolTimeout)
            raise _Lost(f"{type(error).__name__}: {error.__cause__ or error}", billed=not unsent) from error
        except httpx2.HTTPError as error:
            raise _Lost(f"{type(error).__name__}: {error}") from error
        return 0, body.decode("utf-8", errors="replace")

    def _refused(self, error: Any) -> tuple[int, str]:
        status = int(error.status_code)
        said = f"HTTP {status}: {_words(error.body)}"[:500]
        if status in _AGAIN or status >= 500:
            asked = _retry_after(error.response.headers)
            raise _Lost(said, wait=asked, billed=False) from error
        text = self.clean(said)
        if status in (401, 403):
            raise UserError(f"{self.base_url} refuses the key in {self.calls.key or 'no variable'} ({text})") from error
        if status == 404:
            raise self.unknown_model(text) from error
        return status, text

    def _compare_models(self, told: str) -> None:
        if told and not same_model(self.model, told) and (self.base_url, told) not in _TOLD:
            _TOLD.add((self.base_url, told))
            warning = "%s was asked as model %r and answers as %r: whose verdicts are these?"
            logging.getLogger("dpobench").warning(warning, self.base_url, self.model, self.clean(told))

    def unknown_model(self, why: str) -> UserError:
        """What to say when the server does not serve the model, with what it offers."""
        return UserError(f"{self.base_url} does not answer as model {self.model!r} ({why}); {self.offers()}")

    def offers(self) -> str:
        """Which models the server says it has, the nearest to ours first."""
        import openai

        try:
            names = [str(model.id) for model in self.client.models.list().data]
        except (openai.OpenAIError, TypeError, AttributeError):
            return "it does not tell which models it offers; check model and base_url"
        near = difflib.get_close_matches(self.model, names, n=3, cutoff=0.3)
        listed = [*near, *(name for name in names if name not in near)][:10]
        return self.clean(f"it offers: {', '.join(listed) or 'no model'}")


def _words(body: Any) -> str:
    """What the body of a refusal says; servers differ in where they say it."""
    for name in ("message", "detail", "error"):
        if isinstance(body, Mapping) and body.get(name):
            return str(body[name])
    return str(body or "no reason given")


def _retry_after(headers: Mapping[str, str], now: Callable[[], float] = time.time) -> float:
    """Seconds a server asks to wait, by number or by date; 0 where it asks nothing."""
    said = headers.get("retry-after", "")
    try:
        return max(0.0, float(said)) if math.isfinite(float(said)) else 0.0
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(said).timestamp() - now())
    except (ValueError, TypeError):
        return 0.0


def _unpacked(content: str, *, wants_logprobs: bool) -> tuple[str, tuple[int, int] | None, str]:
    """The reply in a body, tokens read and written where the server counts them, and the model's name."""
    try:
        body = json.loads(content)
        choice = body["choices"][0]
        message = choice["message"]
        text = message.get("content") or message.get("refusal") or ""
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise _Lost(f"no chat completion: {content[:200]!r}") from error
    usage = body.get("usage")
    counts = [
        usage.get(name) if isinstance(usage, Mapping) else None for name in ("prompt_tokens", "completion_tokens")
    ]
    known = (counts[0], counts[1]) if all(type(count) is int and 0 <= count < 1 << 40 for count in counts) else None
    listed = kept(choice) if wants_logprobs else None
    return (listed if listed is not None else str(text)), known, str(body.get("model") or "")  # type: ignore[return-value]
