"""Preferences sampled from the base model and labelled by the gold reward."""

import json
import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from dpobench.errors import DpobenchError
from dpobench.synthetic.base import is_held_out
from dpobench.synthetic.grammar import Grammar
from dpobench.synthetic.settings import Settings

Reward = Callable[[str, str], Mapping[str, float]]
_ROUNDS = 20
# What a probability keeps from 0 and 1: float32, in which losses read it, cannot tell one that is nearer from 1.
_NEAREST = 2.0**-24


@dataclass(frozen=True)
class Answer:
    """One sampled answer.

    Args:
        text: what the model said, marks left out.
        usable: whether it ended by itself and has no mark inside, so that its text is all of it.
    """

    text: str
    usable: bool


@dataclass(frozen=True)
class Pair:
    """Two answers and their label.

    Args:
        prompt: what the user asked.
        answers: the preferred answer and the other, in the order of the label.
        scores: gold scores in the same order.
        flipped: whether noise turned the label round.
        win_probability: of the preferred answer against the other by the Bradley-Terry rule, before noise; in (0, 1),
            below 0.5 where the draw or the noise put the worse answer first.
    """

    prompt: str
    answers: tuple[str, str]
    scores: tuple[float, float]
    flipped: bool
    win_probability: float

    def row(self, identity: str, gold: str) -> dict[str, Any]:
        """The pair as a line of JSON: conversations, scores, flag, probability, and a third, best answer."""
        return {
            "id": identity,
            "prompt": [{"role": "user", "content": self.prompt}],
            "chosen": [{"role": "assistant", "content": self.answers[0]}],
            "rejected": [{"role": "assistant", "content": self.answers[1]}],
            "score_chosen": self.scores[0],
            "score_rejected": self.scores[1],
            "flipped": self.flipped,
            "win_probability": self.win_probability,
            "gold": [{"role": "assistant", "content": gold}],
        }


class Sampler:
    """Draws answers from a model's own distribution.

    Args:
        model: a causal language model in evaluation mode.
        tokenizer: its tokenizer, with a chat template.
        seed: of the draws.
        limit: tokens after which an answer is cut.
        batch: answers drawn at a time.
    """

    def __init__(self, model: Any, tokenizer: Any, seed: int, limit: int, batch: int = 512) -> None:
        self.model, self.tokenizer, self.limit, self.batch = model, tokenizer, limit, batch
        self.rng = torch.Generator().manual_seed(seed)

    def __call__(self, prompts: Sequence[str]) -> list[Answer]:
        """One answer for each prompt; prompts of one length are drawn together, so none is padded."""
        chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
        encoded = self.tokenizer.apply_chat_template(chats, add_generation_prompt=True)["input_ids"]
        order = sorted(range(len(prompts)), key=lambda i: len(encoded[i]))
        answers: dict[int, Answer] = {}
        while order:
            width = len(encoded[order[0]])
            group = [i for i in order[: self.batch] if len(encoded[i]) == width]
            order = order[len(group) :]
            answers |= zip(group, self._draw(torch.tensor([encoded[i] for i in group])), strict=True)
        return [answers[i] for i in range(len(prompts))]

    @torch.no_grad()
    def _draw(self, inputs: Tensor) -> list[Answer]:
        end, device = self.tokenizer.eos_token_id, next(self.model.parameters()).device
        rows, drawn = torch.arange(len(inputs)), torch.full((len(inputs), self.limit), end)
        ended = torch.zeros(len(inputs), dtype=torch.bool)
        cache, step_input = DynamicCache(config=self.model.config), inputs
        for step in range(self.limit):
            output = self.model(input_ids=step_input.to(device), past_key_values=cache, use_cache=True)
            chances = output.logits[:, -1].float().softmax(-1).cpu()
            token = torch.multinomial(chances, 1, generator=self.rng)
            drawn[rows, step] = token[:, 0]
            going = token[:, 0] != end
            ended[rows[~going]] = True
            if not going.any():
                break
            # Finished rows leave the cache as soon as there are enough of them to be worth the copy.
            if going.sum() < 0.8 * len(rows):
                cache.batch_select_indices(going.nonzero()[:, 0].to(device))
                rows, token = rows[going], token[going]
            step_input = token
        return [self._answer(ids, bool(done)) for ids, done in zip(drawn.tolist(), ended, strict=True)]

    def _answer(self, ids: list[int], ended: bool) -> Answer:
        end = self.tokenizer.eos_token_id
        body = ids[: ids.index(end)] if ended else ids
        marked = any(token in self.tokenizer.all_special_ids for token in body)
        return Answer(self.tokenizer.decode(body, skip_special_tokens=True), ended and not marked and bool(body))


def two_answers(sampler: Callable[[Sequence[str]], list[Answer]], prompts: Sequence[str]) -> list[tuple[str, str]]:
    """Two different usable answers for each prompt; an answer that cannot be used is drawn again.

    Raises:
        DpobenchError: the model does not end its answers, or always says the same.
    """
    texts = _usable(sampler, [*prompts, *prompts])
    first, second = texts[: len(prompts)], texts[len(prompts) :]
    for _ in range(_ROUNDS):
        same = [i for i in range(len(prompts)) if first[i] == second[i]]
        if not same:
            return list(zip(first, second, strict=True))
        for i, text in zip(same, _usable(sampler, [prompts[i] for i in same]), strict=True):
            second[i] = text
    raise DpobenchError(f"the base model gives one answer only to {prompts[same[0]]!r}; train it for more steps")


def _usable(sampler: Callable[[Sequence[str]], list[Answer]], prompts: Sequence[str]) -> list[str]:
    texts: dict[int, str] = {}
    for _ in range(_ROUNDS):
        todo = [i for i in range(len(prompts)) if i not in texts]
        if not todo:
            return [texts[i] for i in range(len(prompts))]
        for i, answer in zip(todo, sampler([prompts[i] for i in todo]), strict=True):
            if answer.usable:
                texts[i] = answer.text
    raise DpobenchError(f"the base model does not end its answer to {prompts[todo[0]]!r}; train it for more steps")


def label(
    prompts: Sequence[str],
    answers: Iterable[tuple[str, str]],
    reward: Reward,
    settings: Settings,
    *,
    noise: float,
    rng: random.Random,
) -> list[Pair]:
    """Bradley-Terry labels: the first is preferred with probability sigmoid(score difference / temperature).

    Args:
        prompts: what was asked.
        answers: two answers to each.
        reward: gold score and its parts.
        settings: temperature and length bonus.
        noise: share of labels turned round after they are drawn.
        rng: source of the draws.
    """
    pairs = []
    for prompt, (first, second) in zip(prompts, answers, strict=True):
        parts = (reward(prompt, first), reward(prompt, second))
        worth = [p["score"] + settings.length_bonus * p["words"] for p in parts]
        difference = (worth[0] - worth[1]) / settings.temperature
        chance = 0.5 * (1 + math.tanh(difference / 2))
        swap, flipped = rng.random() >= chance, rng.random() < noise
        texts, scores = (first, second), (parts[0]["score"], parts[1]["score"])
        if swap != flipped:
            texts, scores, chance = (second, first), (scores[1], scores[0]), 1 - chance
        pairs.append(Pair(prompt, texts, scores, flipped, min(1 - _NEAREST, max(_NEAREST, chance))))
    return pairs


def split_prompts(grammar: Grammar, settings: Settings) -> tuple[list[str], list[str]]:
    """Prompts to train on, and held-out ones.

    Returns: `settings.pairs` training prompts, each as often as the others give or take one, and `settings.prompts`
        held-out prompts, each once; no text is in both.
    """
    rng = random.Random(f"prompts:{settings.seed}")
    everything = grammar.review_prompts()
    training = [prompt for prompt in everything if not is_held_out(prompt)]
    held_out = [prompt for prompt in everything if is_held_out(prompt)]
    rng.shuffle(training)
    rounds = -(-settings.pairs // len(training))
    return (training * rounds)[: settings.pairs], rng.sample(held_out, settings.prompts)


def lines(rows: Iterable[Any]) -> str:
    """Rows as JSON lines."""
    return "".join(json.dumps(row) + "\n" for row in rows)
