"""The judge behind an OpenAI-compatible endpoint: a hosted model, or a server of your own."""

import concurrent.futures
import dataclasses
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from dpobench import Prompt, UserError, judge
from dpobench.evals.judges._comparison import (
    INSTRUCTIONS,
    Mode,
    Verdict,
    read_logprobs,
    read_template,
    read_text,
    written,
)
from dpobench.evals.judges._endpoint import Answer, Budget, Calls, Endpoint, checked_address, group
from dpobench.evaluation.judge_cache import Limits, current, key

_READ = {"text": read_text, "logprobs": read_logprobs}
_COLUMNS = ["p_first", "verdict", "raw", "tokens", "latency", "cost", "mode"]
_TOP, _FEWER = 20, 5
# So many comparisons in a row without an answer: the server is down, and waiting for the rest helps nobody.
_IN_A_ROW = 10


def check(*, model: str = "", base_url: str = "", template: str = "", budget: Any = None, calls: Any = None) -> None:
    """Ask the server for one verdict, so that a wrong setting is told before anything is trained.

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
    """What comparisons would cost, before any is made.

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
        told = f"judge: about {self.requests:,} requests, {self.tokens:,} tokens and a cost of {self.cost:,.2f}"
        return told + (f"; over the budget of {', '.join(over)}" if over else "; within the budget")


def estimate(comparisons: int, prompt_tokens: float, answer_tokens: float, *, model: str = "", base_url: str = "",
             template: str = "", budget: Any = None, calls: Any = None) -> Estimate:  # fmt: skip
    """What a number of comparisons would cost; nothing is sent.

    Args:
        comparisons: orders x prompts x draws x opponents x runs.
        prompt_tokens: of a prompt.
        answer_tokens: of an answer.
        model: as for the judge, like what follows.
        base_url: of the server.
        template: file.
        budget: with the prices.
        calls: how the endpoint is asked. Where the mode is "auto", replies in words are assumed, which cost more.
    """
    endpoint = _endpoint(model, base_url, budget, calls)
    mode: Mode = "logprobs" if endpoint.calls.mode == "logprobs" else "text"
    # Four bytes a token: the rule of thumb for English.
    frame = len((read_template(template) + INSTRUCTIONS[mode]).encode()) / 4
    read = comparisons * (frame + prompt_tokens + 2 * answer_tokens)
    wrote = comparisons * (1 if mode == "logprobs" else endpoint.calls.reply_tokens)
    cost = endpoint.budget.cost(read, wrote)
    return Estimate(comparisons, round(read + wrote), cost, endpoint.budget.limits)


# What is spent, and how long is waited, decides no verdict.
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
    budget: Mapping[str, Any] | None = None,
    calls: Mapping[str, Any] | None = None,
) -> pd.DataFrame:
    """Compare two answers by a model behind an OpenAI-compatible endpoint, at temperature 0.

    One request at the start finds out whether the server returns the log-probabilities of the two labels. Where it does, a
    verdict is p(A) / (p(A) + p(B)) at the first token; elsewhere it is the one mark in the last line of a reply in words.
    Replies are kept by content and never asked for twice; one that cannot be read is asked for once more by the next call.

    Args:
        prompts: what was asked.
        first: answers shown first.
        second: answers shown second.
        model: what the server calls the model.
        base_url: address of the server, up to and with `/v1`.
        template: file with a template of your own: places $request, $first, $second, $instruction and, if wanted, $code.
        budget: `max_requests`, `max_tokens`, `max_cost`, `price_input` and `price_output` (per million tokens); see `Budget`.
        calls: `key`, `concurrency`, `timeout`, `tries`, `shortest_wait`, `longest_wait`, `reply_tokens`, `seed`, `mode`; see
            `Calls`.

    Returns: a row per comparison: `p_first` in [0, 1], NaN without a verdict; `verdict`, one of first, second, tie,
        unparsable (a reply that holds no verdict) and error (no reply); `raw`; `tokens` read and written, `latency` in seconds
        and `cost` of the request that was answered, whenever that was; `mode`, "logprobs" or "text".

    Raises:
        UserError: a setting is wrong, the server does not know the key or the model, ten comparisons in a row had no reply, or
            the next request would pass the budget. What was replied until then is kept.
    """
    endpoint = _endpoint(model, base_url, budget, calls)
    text = read_template(template)
    try:
        form = _form(endpoint, text)
        shown = zip(prompts, first, second, strict=True)
        requests = [form.request(endpoint, written(text, form.mode, *one)) for one in shown]
        return _table(endpoint, form, requests)
    finally:
        endpoint.close()


def _endpoint(model: str, base_url: str, budget: Any, calls: Any) -> Endpoint:
    address = checked_address(base_url)
    if not model:
        raise UserError(f"the judge needs a model: set model to what {address} calls it")
    return Endpoint(address, model, group(Calls, calls, "calls"), group(Budget, budget, "budget"), current())


@dataclass(frozen=True)
class _Form:
    """How this server takes requests.

    Args:
        mode: how verdicts are given.
        limit: what it calls the most tokens of a reply.
        top: log-probabilities asked for at a token.
        left_out: parameters it refuses.
    """

    mode: Mode
    limit: str = "max_tokens"
    top: int = _TOP
    left_out: tuple[str, ...] = ()

    def request(self, endpoint: Endpoint, content: str) -> dict[str, Any]:
        """The body of a request: all that a reply depends on, the server apart."""
        asked: dict[str, Any] = {
            "model": endpoint.model,
            "messages": [{"role": "user", "content": content}],
            "temperature": 0,
            "seed": endpoint.calls.seed,
            self.limit: endpoint.calls.reply_tokens,
        }
        if self.mode == "logprobs":
            asked |= {"logprobs": True, "top_logprobs": self.top, self.limit: 1}
        return {name: value for name, value in asked.items() if name not in self.left_out}

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


_TRIAL = ("How many legs does a cat have?", "A cat has four legs.", "A cat has nine legs.")


def _form(endpoint: Endpoint, template: str) -> _Form:
    """How the server takes requests, found out once and kept."""
    wanted, server, model = endpoint.calls.mode, endpoint.base_url, endpoint.model
    name = key(kind="form", server=server, model=model, template=template, mode=wanted, instructions=dict(INSTRUCTIONS))
    known = current().get([name])
    if name not in known:
        found = _found_form(endpoint, template)
        if found.left_out:
            logging.getLogger("dpobench").warning(
                "%s refuses %s: replies may differ from call to call", server, " and ".join(found.left_out)
            )
        current().put({name: dataclasses.asdict(found)})
        return found
    stored = known[name]
    return _Form(stored["mode"], stored["limit"], stored["top"], tuple(stored["left_out"]))


def _found_form(endpoint: Endpoint, template: str) -> _Form:
    endpoint.ready()
    question, *answers = _TRIAL
    prompt = Prompt("trial", ({"role": "user", "content": question},))
    modes: Sequence[Any] = ("logprobs", "text") if endpoint.calls.mode == "auto" else (endpoint.calls.mode,)
    answer, form = Answer(""), _Form("text")
    for mode in modes:
        form = dataclasses.replace(form, mode=mode)
        content = written(template, mode, prompt, *answers)
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


def _table(endpoint: Endpoint, form: _Form, requests: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """A row per request; only those whose reply is not kept are sent."""
    read = _READ[form.mode]
    keys = [key(kind="comparison", server=endpoint.base_url, request=request) for request in requests]
    failures: dict[str, str] = {}

    def ask(places: list[int]) -> Iterator[tuple[int, dict[str, Any]]]:
        had = current().get(keys[place] for place in places)
        again = {place: had.get(keys[place], {}).get("count", 0) for place in places}
        for place, answer in _answers(endpoint, {place: _next(requests[place], again[place]) for place in places}):
            if answer.failed:
                failures[keys[place]] = answer.raw
            else:
                told = dataclasses.asdict(answer)
                yield place, {name: told[name] for name in ("raw", "tokens", "latency", "cost")}

    def good(reply: Mapping[str, Any]) -> bool:
        return math.isfinite(read(reply["raw"]).p_first)

    rows = []
    for name, reply in zip(keys, current().answered(keys, ask, good), strict=True):
        if name in failures:
            lost = {"raw": failures[name], "tokens": 0, "latency": 0.0, "cost": 0.0}
            rows.append({"p_first": math.nan, "verdict": "error", "mode": form.mode, **lost})
        else:
            assert reply is not None
            verdict: Verdict = read(reply["raw"])
            rows.append({"p_first": verdict.p_first, "verdict": verdict.verdict, "mode": form.mode, **reply})
    return pd.DataFrame(rows, columns=_COLUMNS)


def _next(request: Mapping[str, Any], asked: int) -> Mapping[str, Any]:
    """The request for another reply to a question that was asked so often before."""
    return {**request, "seed": request["seed"] + asked} if "seed" in request else request


def _answers(endpoint: Endpoint, requests: Mapping[int, Mapping[str, Any]]) -> Iterator[tuple[int, Answer]]:
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
                    "when it answers: replies so far are kept"
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
