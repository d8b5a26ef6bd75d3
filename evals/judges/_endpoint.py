"""One request to an OpenAI-compatible server: paid for before it is sent, tried again while it may help, read to a bound."""

import difflib
import email.utils
import functools
import json
import logging
import math
import os
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypedDict, cast

from dpobench import UserError
from dpobench.evals.judges._comparison import Choice, first_token_logprobs, same_model
from dpobench.evals.judges._endpoint_settings import Budget, Calls
from dpobench.evaluation.judge_cache import Replies

if TYPE_CHECKING:
    import openai

# No reply to a request for one verdict is longer than this, bytes.
LARGEST = 1 << 20
_AGAIN = frozenset({408, 409, 425, 429})
# Servers and models with a warning in the log that they are not those requested.
_WARNED: set[tuple[str, str]] = set()


class Turn(TypedDict):
    """A message to the model."""

    role: str
    content: str


class ChatRequest(TypedDict, total=False):
    """The body of a request for a chat completion; what a server refuses is left out."""

    model: str
    messages: list[Turn]
    temperature: float
    seed: int
    max_tokens: int
    max_completion_tokens: int
    logprobs: bool
    top_logprobs: int


class Completion(TypedDict, total=False):
    """The body of a reply, as a server sent it: nothing of it is certain."""

    choices: list[Choice]
    usage: Mapping[str, int] | None
    model: str | None


@dataclass(frozen=True)
class Answer:
    """The outcome of one request and its further tries.

    Args:
        raw: the reply, or the reason why there is none.
        failed: whether there is no reply.
        status: HTTP status of a refusal; 0 otherwise.
        tokens: read and written.
        latency: seconds of the request that was answered.
        cost: of it, in the currency of the prices.
    """

    raw: str
    failed: bool = False
    status: int = 0
    tokens: int = 0
    latency: float = 0.0
    cost: float = 0.0


class _Retry(Exception):
    """A failure that may pass.

    Args:
        why: the reason.
        wait: seconds the server asks to wait.
        billed: whether the request may have cost something.
    """

    def __init__(self, why: str, wait: float = 0.0, billed: bool = True) -> None:
        super().__init__(why)
        self.wait, self.billed = wait, billed


@dataclass
class Endpoint:
    """An OpenAI-compatible server.

    Args:
        base_url: its address.
        model: what it calls the model.
        calls: how requests are sent.
        budget: what may be spent.
        replies: the cache whose account pays.
        stopped: set to give up what has not been sent.
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
        if not (key := os.environ.get(self.calls.key, "").strip()):
            # In lower case it may be the key itself.
            shown = f" {self.calls.key}" if self.calls.key.isupper() else " that calls.key names"
            raise UserError(
                f"the judge's API key is missing: set the environment variable{shown}, name another one by calls.key, "
                'or set calls.key to "" for a server that wants none'
            )
        return key

    @functools.cached_property
    def client(self) -> "openai.OpenAI":
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
        """Close all connections."""
        self.stopped.set()
        if "client" in vars(self):
            self.client.close()

    def clean(self, text: str) -> str:
        """A server's text as it can be stored, without the key should the server repeat it."""
        text = text.encode("utf-8", errors="replace").decode()
        return text.replace(self._key, "[key]") if self._key else text

    def answer(self, request: ChatRequest) -> Answer:
        """Send a request, again after failures that may pass; other refusals are returned with their status.

        Raises:
            UserError: the budget does not allow another request, the key is refused, or the model is unknown.
        """
        why = ""
        for number in range(self.calls.tries):
            if self.stopped.is_set():
                return Answer(f"stopped; {why}", failed=True)
            try:
                return self._charged(request)
            except _Retry as failure:
                why = self.clean(str(failure))
                wait = self.calls.shortest_wait * 2**number * self._chance.uniform(0.5, 1.0)
                wait = min(max(wait, failure.wait), self.calls.longest_wait)
            if number + 1 < self.calls.tries:
                self.stopped.wait(wait)
        return Answer(f"gave up after {self.calls.tries} tries: {why}", failed=True)

    def _charged(self, request: ChatRequest) -> Answer:
        """One request: the most it can use is charged before it is sent, and what it did not use is given back."""
        read = 64 + sum(len(turn["content"].encode()) for turn in request["messages"])
        wrote = request.get("max_tokens", request.get("max_completion_tokens", 0))
        most = self.budget.cost(read, wrote)
        self.replies.charge(1, read + wrote, most, self.budget.limits)
        began = time.monotonic()
        try:
            status, content = self._send(request)
        except _Retry as failure:
            if not failure.billed:
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

    def _send(self, request: ChatRequest) -> tuple[int, str]:
        """Send a request once.

        Returns: 0 and the body, of which at most a little over `LARGEST` bytes are read; or the status of a refusal and its text.
        """
        import httpx2
        import openai

        deadline = time.monotonic() + self.calls.timeout
        body = b""
        try:
            # The package's own types of a request do not know the fields that only some servers take.
            create: Callable[..., Any] = self.client.chat.completions.with_streaming_response.create
            with create(**request) as response:
                for piece in response.iter_bytes():
                    body += piece
                    if len(body) > LARGEST:
                        break
                    if time.monotonic() > deadline:
                        raise _Retry(f"no whole reply in {self.calls.timeout:g} s")
        except openai.APIStatusError as error:
            return self._refused(error)
        except openai.APIConnectionError as error:
            unsent = isinstance(error.__cause__, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.PoolTimeout)
            raise _Retry(f"{type(error).__name__}: {error.__cause__ or error}", billed=not unsent) from error
        except httpx2.HTTPError as error:
            raise _Retry(f"{type(error).__name__}: {error}") from error
        return 0, body.decode("utf-8", errors="replace")

    def _refused(self, error: "openai.APIStatusError") -> tuple[int, str]:
        status = int(error.status_code)
        reason = f"HTTP {status}: {_reason(error.body)}"[:500]
        if status in _AGAIN or status >= 500:
            raise _Retry(reason, wait=_retry_after(error.response.headers), billed=False) from error
        text = self.clean(reason)
        if status in (401, 403):
            raise UserError(f"{self.base_url} refuses the key in {self.calls.key or 'no variable'} ({text})") from error
        if status == 404:
            raise self.unknown_model(text) from error
        return status, text

    def _compare_models(self, served: str) -> None:
        if served and not same_model(self.model, served) and (self.base_url, served) not in _WARNED:
            _WARNED.add((self.base_url, served))
            warning = "%s was requested as model %r and answers as %r: whose verdicts are these?"
            logging.getLogger("dpobench").warning(warning, self.base_url, self.model, self.clean(served))

    def unknown_model(self, why: str) -> UserError:
        """The error that the server does not serve the model, with those it offers."""
        return UserError(f"{self.base_url} does not answer as model {self.model!r} ({why}); {self.offers()}")

    def offers(self) -> str:
        """The models that the server lists, those of a similar name first, as part of a message."""
        import openai

        try:
            names = [str(model.id) for model in self.client.models.list().data]
        except (openai.OpenAIError, TypeError, AttributeError):
            return "it does not tell which models it offers; check model and base_url"
        near = difflib.get_close_matches(self.model, names, n=3, cutoff=0.3)
        listed = [*near, *(name for name in names if name not in near)][:10]
        return self.clean(f"it offers: {', '.join(listed) or 'no model'}")


def _reason(body: object) -> str:
    """The reason in the body of a refusal; servers differ in the name of its field."""
    for name in ("message", "detail", "error"):
        if isinstance(body, Mapping) and body.get(name):
            return str(body[name])
    return str(body or "no reason given")


def _retry_after(headers: Mapping[str, str], now: Callable[[], float] = time.time) -> float:
    """Seconds a server asks to wait, by number or by date; 0 where it asks nothing."""
    header = headers.get("retry-after", "")
    try:
        return max(0.0, float(header)) if math.isfinite(float(header)) else 0.0
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - now())
    except (ValueError, TypeError):
        return 0.0


def _unpacked(content: str, *, wants_logprobs: bool) -> tuple[str, tuple[int, int] | None, str]:
    """The reply in a body, tokens read and written where the server counts them, and the model's name."""
    try:
        body = cast(Completion, json.loads(content))
        choice = body["choices"][0]
        message = choice["message"]
        text = message.get("content") or message.get("refusal") or ""
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise _Retry(f"no chat completion: {content[:200]!r}") from error
    usage = body.get("usage")
    counts = (-1, -1)
    if isinstance(usage, Mapping):
        counts = (usage.get("prompt_tokens", -1), usage.get("completion_tokens", -1))
    counted = all(type(count) is int and 0 <= count < 1 << 40 for count in counts)
    logprobs = first_token_logprobs(choice) if wants_logprobs else None
    return (logprobs if logprobs is not None else str(text)), counts if counted else None, str(body.get("model") or "")
