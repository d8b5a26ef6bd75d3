"""A chat model on this machine as judge: one forward pass a comparison, the probabilities of two labels, nothing to parse."""

import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TypedDict

import pandas as pd
import torch

from dpobench import Prompt, UserError, judge
from dpobench.data.rows import Message
from dpobench.data.template import Writer, resolve_template
from dpobench.evals.judges._comparison import read_template, request_text, soft_verdict
from dpobench.evaluation.judge_cache import current, key
from dpobench.evaluation.pairwise import VerdictRow
from dpobench.models.checkpoint import Stamp, known_hash, load_model, load_tokenizer, resolve, stamp_of
from dpobench.models.logprobs import Batch, by_tokens, completion_hidden, head_of, within
from dpobench.models.protocols import CausalLM

_LABELS = ("A", "B")
# Most tokens of a padded batch; on a CPU fewer.
BUDGET = 8192


class _Reply(TypedDict):
    """A reply as the cache holds it: the labels' log-probabilities in nats as JSON, tokens read, and seconds."""

    raw: str
    tokens: int
    latency: float


def check(**settings: str) -> None:
    """Whether there are such a model and templates: nothing is compared.

    Raises:
        UserError: as `local`.
    """
    local([], [], [], **settings)


@judge(pointwise=False, check=check)
def local(
    prompts: Sequence[Prompt],
    first: Sequence[str],
    second: Sequence[str],
    *,
    model: str = "",
    template: str = "",
    chat_template: str = "auto",
    precision: str = "float32",
    device: str = "",
) -> pd.DataFrame:
    """Compare two answers by the probabilities that a chat model gives the labels A and B as its next token.

    `p_first` is p(A) / (p(A) + p(B)). Request and answers stand between fences that carry a hash of what is inside, and control
    tokens of the judge in them are read as ordinary text. Verdicts are cached by the content of weights and request.

    Args:
        prompts: N requests that were answered.
        first: answers shown first, as A.
        second: answers shown second, as B.
        model: folder or hub name of a chat model.
        template: file with another template: places $request, $first, $second, $instruction and, if wanted, $code.
        chat_template: "auto" for the tokenizer's own, "plain", or a Jinja file.
        precision: "float32" or "bf16": how the model is loaded.
        device: where it runs; empty for the accelerator where there is one.

    Returns: a row per comparison: `p_first`; `verdict`; `raw`, both labels' log-probabilities in nats; `tokens` read; `latency`, seconds
        of its batch over the batch's size. A comparison longer than the model can read has the verdict "error".

    Raises:
        UserError: no such model or template, or the labels are not single tokens of the model.
    """
    if not model:
        raise UserError("the local judge needs a model; set evaluation.judge_settings.model to a folder or a hub name")
    folder = resolve(model)
    text = read_template(template)
    shown = zip(prompts, first, second, strict=True)
    requests = [request_text(text, "logprobs", prompt, a, b) for prompt, a, b in shown]
    stamp = stamp_of(folder)
    weights, chat = known_hash(folder, stamp), resolve_template(load_tokenizer(folder), chat_template).hash
    keys = [
        key(kind="labels", weights=weights, precision=precision, chat=chat, request=request) for request in requests
    ]

    def ask(places: list[int]) -> Iterator[tuple[int, _Reply]]:
        model = _loaded(folder, stamp, chat_template, precision, device)
        yield from model.replies({place: requests[place] for place in places})

    rows = [_row(reply) for reply in current().get_or_ask(keys, ask)]
    return pd.DataFrame(rows, columns=list(VerdictRow.__annotations__))


def _row(reply: _Reply | None) -> VerdictRow:
    if reply is None:
        reply = {"raw": "longer than the judge can read", "tokens": 0, "latency": 0.0}
        return {"p_first": math.nan, "verdict": "error", "cost": 0.0, **reply}
    a, b = (json.loads(reply["raw"])[label] for label in _LABELS)
    verdict = soft_verdict(1 / (1 + math.exp(min(700.0, b - a))))
    return {"p_first": verdict.p_first, "verdict": verdict.verdict, "cost": 0.0, **reply}


@dataclass(frozen=True)
class _Judge:
    """A loaded judge.

    Args:
        model: the model.
        writer: its tokenizer and template.
        limit: most tokens it can read; None where its configuration sets no limit.
        lead: ids that its template puts between the prompt and an answer.
        labels: ids of the two labels.
    """

    model: CausalLM
    writer: Writer
    limit: int | None
    lead: tuple[int, ...]
    labels: tuple[int, int]

    def replies(self, requests: dict[int, str]) -> Iterator[tuple[int, _Reply]]:
        """Log-probabilities of both labels, a batch at a time; requests that are too long have no reply."""
        prompts = self.writer.prompt_ids([self.writer.prompt(_turn(text)) for text in requests.values()])
        ids = {place: [*prompt, *self.lead] for place, prompt in zip(requests, prompts, strict=True)}
        short = [place for place, tokens in ids.items() if self.limit is None or len(tokens) < self.limit]
        for group in by_tokens([len(ids[place]) + 1 for place in short], within(BUDGET, self.model.device)):
            places = [short[at] for at in group]
            began = time.monotonic()
            logps = self._logps([ids[place] for place in places])
            latency = (time.monotonic() - began) / len(places)
            for place, (a, b) in zip(places, logps, strict=True):
                raw = json.dumps({"A": round(a, 6), "B": round(b, 6)})
                yield place, {"raw": raw, "tokens": len(ids[place]), "latency": round(latency, 6)}

    @torch.no_grad()
    def _logps(self, prompts: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probabilities of both labels after each prompt, nats."""
        # The label that stands after each request is never read: causal attention looks back only.
        batch = Batch([(ids, [self.labels[0]]) for ids in prompts], self.model.device)
        logits = head_of(self.model)(completion_hidden(self.model, batch))
        logps: list[list[float]] = logits.log_softmax(-1)[:, list(self.labels)].double().tolist()
        return logps


def _turn(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


@lru_cache(maxsize=1)
def _loaded(folder: Path, stamp: Stamp, chat_template: str, precision: str, device: str) -> _Judge:
    tokenizer = load_tokenizer(folder)
    writer = Writer(tokenizer, resolve_template(tokenizer, chat_template))
    lead, labels = _labels(writer, folder)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    model = load_model(folder, device=device, dtype=precision)
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return _Judge(model, writer, limit, lead, labels)


def _labels(writer: Writer, folder: Path) -> tuple[tuple[int, ...], tuple[int, int]]:
    """Ids that the template puts before an answer, and those of the labels as an answer."""
    prompt = writer.prompt(_turn("?"))
    a, b = (ids[:-1] for ids in writer.answer_ids([writer.answer(_turn("?"), label, prompt) for label in _LABELS]))
    if (
        not a
        or len(a) != len(b)
        or a[:-1] != b[:-1]
        or a[-1] == b[-1]
        or writer.tokenizer.unk_token_id in (a[-1], b[-1])
    ):
        spelled = [writer.tokenizer.convert_ids_to_tokens(ids) for ids in (a, b)]
        raise UserError(
            f"judge {folder}: the labels 'A' and 'B' are not one token each for its tokenizer ({spelled[0]} and {spelled[1]}), so "
            "their probabilities are not those of the verdicts; choose another model, or another chat_template"
        )
    return tuple(a[:-1]), (a[-1], b[-1])
