"""A reward model on this machine as judge: one score per answer, so that every comparison is free once answers are scored."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, TypedDict

import pandas as pd
import torch

from dpobench import Prompt, UserError, judge
from dpobench.data.template import Writer, resolve_template
from dpobench.evaluation.judge_cache import current, key
from dpobench.models.checkpoint import Stamp, known_hash, load_tokenizer, resolve, stamp_of
from dpobench.models.logprobs import by_tokens, within

_DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
# Most tokens of a padded batch; on a CPU fewer.
BUDGET = 8192


class _Reply(TypedDict):
    """A reply as the cache holds it: the score, and 1 where the dialogue's beginning was cut off."""

    score: float
    truncated: int


class _Logits(Protocol):
    logits: torch.Tensor


class _Classifier(Protocol):
    """What is used of a sequence classifier of `transformers`, which is not checked for types."""

    config: Any

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        ...

    def __call__(self, *, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> _Logits:
        """Logits of shape [N, labels] for token ids and mask of shape [N, S]."""
        ...


def check(**settings: Any) -> None:
    """Whether there is such a model with a template: nothing is scored.

    Raises:
        UserError: as `reward_model`.
    """
    reward_model([], [], **settings)


@judge(pointwise=True, check=check)
def reward_model(
    prompts: Sequence[Prompt],
    completions: Sequence[str],
    *,
    model: str = "",
    chat_template: str = "auto",
    max_tokens: int = 0,
    precision: str = "float32",
    device: str = "",
) -> pd.DataFrame:
    """Score answers by a sequence classifier with one label, on the dialogue as its chat template writes it.

    Scores are cached by the content of weights and dialogue.

    Args:
        prompts: N requests that were answered.
        completions: an answer to each.
        model: folder or hub name of a reward model, as `AutoModelForSequenceClassification` loads it.
        chat_template: "auto" for the tokenizer's own, "plain", or a Jinja file.
        max_tokens: most tokens of a dialogue; 0 for the model's own limit. Of a longer one the beginning is cut off.
        precision: "float32" or "bf16": how the model is loaded.
        device: where it runs; empty for the accelerator where there is one.

    Returns: a row per answer: `score`, the model's one logit; `truncated`, 1 where the dialogue's beginning was cut off.

    Raises:
        UserError: no such model; it has another number of labels than one, no `pad_token_id` or another one than its tokenizer,
            or a score that is not finite.
    """
    if not model:
        raise UserError("the reward model has no name; set evaluation.judge_settings.model to a folder or a hub name")
    folder = resolve(model)
    stamp = stamp_of(folder)
    weights, writer = known_hash(folder, stamp), _writer(folder, stamp, chat_template)
    texts = [_dialogue(writer, prompt, answer) for prompt, answer in zip(prompts, completions, strict=True)]
    deciding = {"weights": weights, "precision": precision, "most": max_tokens}
    keys = [key(kind="reward", dialogue=text, **deciding) for text in texts]

    def ask(places: list[int]) -> Iterator[tuple[int, _Reply]]:
        scorer = _loaded(folder, stamp, chat_template, precision, device)
        yield from scorer.replies({place: texts[place] for place in places}, max_tokens)

    missing: _Reply = {"score": math.nan, "truncated": 0}
    replies = [reply or missing for reply in current().get_or_ask(keys, ask)]
    scores, truncated = [reply["score"] for reply in replies], [float(reply["truncated"]) for reply in replies]
    return pd.DataFrame({"score": scores, "truncated": truncated}, dtype=float)


def _dialogue(writer: Writer, prompt: Prompt, answer: str) -> str:
    beginning = writer.prompt(prompt.messages)
    return beginning + writer.answer(prompt.messages, answer, beginning)


@lru_cache(maxsize=4)
def _writer(folder: Path, stamp: Stamp, chat_template: str) -> Writer:
    tokenizer = load_tokenizer(folder)
    return Writer(tokenizer, resolve_template(tokenizer, chat_template))


@dataclass(frozen=True)
class _Scorer:
    """A loaded reward model with its tokenizer and template.

    Args:
        model: the model.
        writer: its tokenizer and template.
        limit: most tokens it can read; None where its configuration sets no limit.
    """

    model: _Classifier
    writer: Writer
    limit: int | None

    @torch.no_grad()
    def replies(self, texts: dict[int, str], max_tokens: int) -> Iterator[tuple[int, _Reply]]:
        """Scores, a batch at a time."""
        most = max_tokens or self.limit
        whole = dict(zip(texts, self.writer.prompt_ids(list(texts.values())), strict=True))
        ends = {place: ids[-most:] if most else ids for place, ids in whole.items()}
        places = list(ends)
        for group in by_tokens([len(ends[place]) for place in places], within(BUDGET, self.model.device)):
            rows = [ends[places[at]] for at in group]
            ids = torch.full((len(rows), max(map(len, rows))), self.model.config.pad_token_id)
            mask = torch.zeros_like(ids)
            for at, row in enumerate(rows):
                ids[at, : len(row)], mask[at, : len(row)] = torch.tensor(row), 1
            device = self.model.device
            logits = self.model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits[:, 0].double().tolist()
            for at, score in zip(group, logits, strict=True):
                if not math.isfinite(score):
                    raise UserError(
                        f"the reward model scores an answer {score}; take another model, or float32 precision"
                    )
                cut = len(ends[places[at]]) < len(whole[places[at]])
                yield places[at], {"score": score, "truncated": int(cut)}


@lru_cache(maxsize=1)
def _loaded(folder: Path, stamp: Stamp, chat_template: str, precision: str, device: str) -> _Scorer:
    from transformers import AutoModelForSequenceClassification

    writer = _writer(folder, stamp, chat_template)
    if precision not in _DTYPES:
        raise UserError(f"reward_model.precision = {precision!r}: one of {', '.join(_DTYPES)} is expected")
    try:
        model, loading = AutoModelForSequenceClassification.from_pretrained(
            folder, dtype=_DTYPES[precision], local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except (ValueError, OSError) as error:
        raise UserError(
            f"reward model {folder}: {str(error).strip().splitlines()[0]}; a sequence classifier is expected"
        ) from error
    if loading["missing_keys"]:
        raise UserError(
            f"reward model {folder}: its files hold no {min(loading['missing_keys'])}, so its scores would be random; "
            "name a model that was trained as a reward model"
        )
    if model.config.num_labels != 1:
        raise UserError(
            f"reward model {folder}: it has {model.config.num_labels} labels, one is expected; choose another model"
        )
    pad = model.config.pad_token_id
    if pad is None or pad != writer.tokenizer.pad_token_id:
        raise UserError(
            f"reward model {folder}: pad_token_id is {pad} in its config.json and {writer.tokenizer.pad_token_id} in its "
            "tokenizer; without one and the same it reads the score at the wrong token: set both"
        )
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return _Scorer(model.to(device).eval(), writer, limit)
