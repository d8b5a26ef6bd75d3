"""The judge behind an OpenAI-compatible endpoint: a hosted model, or a server on your machines."""

import concurrent.futures
import dataclasses
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict, cast

import pandas as pd

from dpobench import Prompt, UserError, judge
from dpobench.evals.judges._comparison import (
    INSTRUCTIONS,
    Mode,
    read_logprobs,
    read_template,
    read_text,
    request_text,
)
from dpobench.evals.judges._endpoint import Answer, ChatRequest, Endpoint
from dpobench.evals.judges._endpoint_settings import Budget, Calls, checked_address, settings_group
from dpobench.evaluation.judge_cache import Limits, current, key
from dpobench.evaluation.pairwise import VerdictRow
from dpobench.evaluation.settings import SettingsTable


class _Reply(TypedDict):
    """A reply as the cache holds it: the raw text, and what the request took."""

    raw: str
    tokens: int
    latency: float
    cost: float


class _Row(VerdictRow):
    mode: Mode


_READ = {"text": read_text, "logprobs": read_logprobs}
_TOP, _FEWER = 20, 5
# So many comparisons in a row without an answer: the server is down, and waiting for the rest helps nobody.
_IN_A_ROW = 10


def check(
    *,
    model: str = "",
    base_url: str = "",
    template: str = "",
    budget: SettingsTable | None = None,
    calls: SettingsTable | None = None,
) -> None:
    """Request one verdict of the server, so that a wrong setting is refused before anything is trained.

    Raises:
        UserError: as the judge would.
    """
    endpoint = _endpoint(model, base_url, budget, calls)
    try:
        _form(endpoint, read_template(template))
    finally:
        endpoint.close()


@dataclass(frozen=True)
class Estimate:
    """The cost of comparisons, before any is made.

    Args:
        requests: one for each comparison; identical answers need none, a reply that cannot be read or a failure needs more.
        tokens: about so many, read and written.
        cost: of them, in the currency of the prices.
        limits: of the budget.
    """

    requests: int
    tokens: int
    cost: float
    limits: Limits

    def __str__(self) -> str:
        """One line for the user."""
        over = [
            f"{name} {getattr(self.limits, name):g}"
            for name in ("requests", "tokens", "cost")
            if getattr(self, name) > getattr(self.limits, name)
        ]
        line = f"judge: about {self.requests:,} requests, {self.tokens:,} tokens and a cost of {self.cost:,.2f}"
        return line + (f"; over the budget of {', '.join(over)}" if over else "; within the budget")


def estimate(
    comparisons: int,
    prompt_tokens: float,
    answer_tokens: float,
    *,
    model: str = "",
    base_url: str = "",
    template: str = "",
    budget: SettingsTable | None = None,
    calls: SettingsTable | None = None,
) -> Estimate:
    """The cost of a number of comparisons; nothing is sent.

    Args:
        comparisons: orders x prompts x draws x opponents x runs.
        prompt_tokens: of a prompt.
        answer_tokens: of an answer.
        model: as for the judge, like what follows.
        base_url: of the server.
        template: file.
        budget: with the prices.
        calls: how requests are sent. Where the mode is "auto", replies in words are assumed, which cost more.

    Raises:
        UserError: a setting is wrong.
    """
    endpoint = _endpoint(model, base_url, budget, calls)
    mode: Mode = "logprobs" if endpoint.calls.mode == "logprobs" else "text"
    # Four bytes a token: the rule of thumb for English.
    frame = len((read_template(template) + INSTRUCTIONS[mode]).encode()) / 4
    read = comparisons * (frame + prompt_tokens + 2 * answer_tokens)
    wrote = comparisons * (1 if mode == "logprobs" else endpoint.calls.reply_tokens)
    cost = endpoint.budget.cost(read, wrote)
    return Estimate(comparisons, round(read + wrote), cost, endpoint.budget.limits)


# Spending and waiting decide no verdict.
_IDLE = (
    "budget",
    *(f"calls.{name}" for name in ("key", "concurrency", "timeout", "tries", "shortest_wait", "longest_wait")),
)


@judge(pointwise=False, check=check, estimate=estimate, idle=_IDLE)
def api(
    prompts: Sequence[Prompt],
    first: Sequence[str],
    second: Sequence[str],
    *,
    model: str = "",
    base_url: str = "",
    template: str = "",
    budget: SettingsTable | None = None,
    calls: SettingsTable | None = None,
) -> pd.DataFrame:
    """Compare two answers by a model behind an OpenAI-compatible endpoint, at temperature 0.

    One request at the start shows whether the server returns the log-probabilities of the two labels. Where it does, a
    verdict is p(A) / (p(A) + p(B)) at the first token; elsewhere it is the one mark in the last line of a reply in words.
    Replies are cached by content and never requested twice; one that cannot be read is requested once more by the next call.

    Args:
        prompts: N requests that were answered.
        first: answers shown first.
        second: answers shown second.
        model: what the server calls the model.
        base_url: address of the server, up to and with `/v1`.
        template: file with another template: places $request, $first, $second, $instruction and, if wanted, $code.
        budget: `max_requests`, `max_tokens`, `max_cost`, `price_input` and `price_output` (per million tokens); see `Budget`.
        calls: `key`, `concurrency`, `timeout`, `tries`, `shortest_wait`, `longest_wait`, `reply_tokens`, `seed`, `mode`; see
            `Calls`.

    Returns: a row per comparison: `p_first` in [0, 1], NaN without a verdict; `verdict`, one of first, second, tie,
        unparsable (a reply that holds no verdict) and error (no reply); `raw`; `tokens` read and written, `latency` in seconds
        and `cost` of the request that was answered, whenever that was; `mode`, "logprobs" or "text".

    Raises:
        UserError: a setting is wrong, the server does not know the key or the model, ten comparisons in a row had no reply, or
            the next request would pass the budget. Replies until then are cached.
    """
    endpoint = _endpoint(model, base_url, budget, calls)
    text = read_template(template)
    try:
        form = _form(endpoint, text)
        shown = zip(prompts, first, second, strict=True)
        requests = [form.request(endpoint, request_text(text, form.mode, *comparison)) for comparison in shown]
        return _table(endpoint, form, requests)
    finally:
        endpoint.close()


def _endpoint(model: str, base_url: str, budget: SettingsTable | None, calls: SettingsTable | None) -> Endpoint:
    address = checked_address(base_url)
    if not model:
        raise UserError(f"the judge needs a model: set model to what {address} calls it")
    sending, spending = settings_group(Calls, calls, "calls"), settings_group(Budget, budget, "budget")
    return Endpoint(address, model, sending, spending, current())


@dataclass(frozen=True)
class _Form:
    """How this server takes requests.

    Args:
        mode: how verdicts are given.
        limit: its name for the most tokens of a reply.
        top: log-probabilities requested at a token.
        left_out: parameters it refuses.
    """

    mode: Mode
    limit: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    top: int = _TOP
    left_out: tuple[str, ...] = ()

    def request(self, endpoint: Endpoint, content: str) -> ChatRequest:
        """The body of a request: all that a reply depends on, the server apart."""
        request: ChatRequest = {"model": endpoint.model, "messages": [{"role": "user", "content": content}]}
        if "temperature" not in self.left_out:
            request["temperature"] = 0
        if "seed" not in self.left_out:
            request["seed"] = endpoint.calls.seed
        request[self.limit] = endpoint.calls.reply_tokens
        if self.mode == "logprobs":
            request |= {"logprobs": True, "top_logprobs": self.top}
            request[self.limit] = 1
        return request

    def adapted(self, refusal: str) -> "_Form | None":
        """The form that a refusal asks for; None where there is none."""
        if "max_completion_tokens" in refusal and self.limit == "max_tokens":
            return dataclasses.replace(self, limit="max_completion_tokens")
        if "top_logprobs" in refusal and self.mode == "logprobs" and self.top > _FEWER:
            return dataclasses.replace(self, top=_FEWER)
        for name in ("temperature", "seed"):
            if name in refusal and name not in self.left_out:
                return dataclasses.replace(self, left_out=(*self.left_out, name))
        return None


class _FormEntry(TypedDict):
    """A `_Form` as the cache holds it."""

    mode: Mode
    limit: Literal["max_tokens", "max_completion_tokens"]
    top: int
    left_out: list[str]


_TRIAL = ("How many legs does a cat have?", "A cat has four legs.", "A cat has nine legs.")


def _form(endpoint: Endpoint, template: str) -> _Form:
    """How the server takes requests, from the cache or by trial."""
    mode, server, model = endpoint.calls.mode, endpoint.base_url, endpoint.model
    name = key(kind="form", server=server, model=model, template=template, mode=mode, instructions=dict(INSTRUCTIONS))
    cached = current().get([name])
    if name in cached:
        entry = cast(_FormEntry, cached[name])
        return _Form(entry["mode"], entry["limit"], entry["top"], tuple(entry["left_out"]))
    form = _tried_form(endpoint, template)
    if form.left_out:
        logging.getLogger("dpobench").warning(
            "%s refuses %s: replies may differ from call to call", server, " and ".join(form.left_out)
        )
    current().put({name: dataclasses.asdict(form)})
    return form


def _tried_form(endpoint: Endpoint, template: str) -> _Form:
    """How the server takes requests, by one small comparison, sent again in another form while it is refused."""
    endpoint.ready()
    question, *answers = _TRIAL
    prompt = Prompt("trial", ({"role": "user", "content": question},))
    modes: Sequence[Mode] = ("logprobs", "text")
    if endpoint.calls.mode != "auto":
        modes = [mode for mode in modes if mode == endpoint.calls.mode]
    answer, form = Answer(""), _Form("text")
    for mode in modes:
        form = dataclasses.replace(form, mode=mode)
        content = request_text(template, mode, prompt, *answers)
        answer = endpoint.answer(form.request(endpoint, content))
        while answer.status and (adapted := form.adapted(answer.raw)) is not None:
            form = adapted
            answer = endpoint.answer(form.request(endpoint, content))
        if answer.failed and not answer.status:
            raise UserError(
                f"{endpoint.base_url} gives no answer as model {endpoint.model!r}: {answer.raw}; is the server up, and base_url "
                f"right? As to models, {endpoint.offers()}"
            )
        if not answer.failed:
            break
    if answer.failed:
        raise endpoint.unknown_model(answer.raw)
    if form.mode == "text" or math.isfinite(read_logprobs(answer.raw).p_first):
        return form
    if endpoint.calls.mode == "logprobs":
        raise UserError(
            f"{endpoint.base_url} returns no log-probabilities of the labels A and B for {endpoint.model!r} "
            f"(it replied {answer.raw[:200]!r}); set calls.mode to text, or to auto"
        )
    return dataclasses.replace(form, mode="text")


def _table(endpoint: Endpoint, form: _Form, requests: Sequence[ChatRequest]) -> pd.DataFrame:
    """A row per request; only those without a cached reply are sent."""
    read = _READ[form.mode]
    keys = [key(kind="comparison", server=endpoint.base_url, request=request) for request in requests]
    failures: dict[str, str] = {}

    def ask(places: list[int]) -> Iterator[tuple[int, _Reply]]:
        to_send = {}
        for place, count in zip(places, current().counts([keys[place] for place in places]), strict=True):
            # Another reply to the same question has the next seed.
            seed = {"seed": requests[place]["seed"] + count} if "seed" in requests[place] else {}
            to_send[place] = requests[place] | ChatRequest(**seed)
        for place, answer in _answers(endpoint, to_send):
            if answer.failed:
                failures[keys[place]] = answer.raw
            else:
                yield place, _Reply(raw=answer.raw, tokens=answer.tokens, latency=answer.latency, cost=answer.cost)

    def readable(reply: _Reply) -> bool:
        return math.isfinite(read(reply["raw"]).p_first)

    rows: list[_Row] = []
    for name, reply in zip(keys, current().get_or_ask(keys, ask, readable), strict=True):
        if name in failures:
            failure = _Reply(raw=failures[name], tokens=0, latency=0.0, cost=0.0)
            rows.append(_Row(p_first=math.nan, verdict="error", mode=form.mode, **failure))
        else:
            assert reply is not None
            verdict = read(reply["raw"])
            rows.append(_Row(p_first=verdict.p_first, verdict=verdict.verdict, mode=form.mode, **reply))
    return pd.DataFrame(rows, columns=[*VerdictRow.__annotations__, "mode"])


def _answers(endpoint: Endpoint, requests: Mapping[int, ChatRequest]) -> Iterator[tuple[int, Answer]]:
    """Answers as they come; after an error that ends it all, those under way are still handed out before it is raised."""
    endpoint.ready()
    problem: UserError | None = None
    in_a_row = 0
    pool = concurrent.futures.ThreadPoolExecutor(endpoint.calls.concurrency, thread_name_prefix="judge")
    try:
        places = {pool.submit(endpoint.answer, request): place for place, request in requests.items()}
        for done in concurrent.futures.as_completed(places):
            if done.cancelled():
                continue
            try:
                answer = done.result()
            except UserError as error:
                problem = problem or error
                _stop(endpoint, places)
                continue
            in_a_row = in_a_row + 1 if answer.failed else 0
            if in_a_row >= _IN_A_ROW and problem is None:
                problem = UserError(
                    f"{endpoint.base_url} had no answer to {in_a_row} comparisons in a row (the last: {answer.raw}); run again "
                    "when it answers: replies so far are cached"
                )
                _stop(endpoint, places)
            yield places[done], answer
    finally:
        endpoint.stopped.set()
        pool.shutdown(wait=True, cancel_futures=True)
    if problem is not None:
        raise problem


def _stop(endpoint: Endpoint, futures: Mapping[concurrent.futures.Future[Answer], int]) -> None:
    endpoint.stopped.set()
    for future in futures:
        future.cancel()
