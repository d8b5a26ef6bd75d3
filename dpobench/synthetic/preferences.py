"""Preferences sampled from the base model and labelled by the gold reward."""

import json
import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor
from transformers import DynamicCache, LlamaForCausalLM, PreTrainedTokenizerFast

from dpobench.errors import DpobenchError
from dpobench.synthetic.base import is_held_out
from dpobench.synthetic.grammar import Grammar
from dpobench.synthetic.settings import Settings

# Prompt and answer to `score` and the parts that it is made of.
Reward = Callable[[str, str], Mapping[str, float]]
# How often an answer that cannot be used is drawn again.
_ROUNDS = 20
# Least distance of a probability from 0 and 1: in float32, in which losses read it, a nearer one is equal to 1.
_NEAREST = 2.0**-24


@dataclass(frozen=True)
class Answer:
    """One sampled answer.

    Args:
        text: of the answer, control tokens left out.
        usable: whether the model ended it and no control token is inside, so that the text is complete.
    """

    text: str
    usable: bool


class PairRow(TypedDict):
    """A row of `train.jsonl` and `heldout.jsonl`."""

    id: str
    prompt: list[dict[str, str]]
    chosen: list[dict[str, str]]
    rejected: list[dict[str, str]]
    score_chosen: float
    score_rejected: float
    flipped: bool
    win_probability: float
    gold: list[dict[str, str]]


@dataclass(frozen=True)
class Pair:
    """Two answers and their label.

    Args:
        prompt: of the user.
        answers: the preferred answer and the other, in the order of the label.
        scores: gold scores in the same order.
        flipped: whether noise flipped the label.
        win_probability: of the preferred answer against the other by the Bradley-Terry rule, before noise; in (0, 1),
            below 0.5 where the draw or the noise put the worse answer first.
    """

    prompt: str
    answers: tuple[str, str]
    scores: tuple[float, float]
    flipped: bool
    win_probability: float

    def row(self, identity: str, gold: str) -> PairRow:
        """The pair as a row of its file.

        Args:
            identity: of the row.
            gold: a third, best answer.
        """
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
        batch: most answers drawn at a time.
    """

    def __init__(
        self, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, seed: int, limit: int, batch: int = 512
    ) -> None:
        self.model, self.tokenizer, self.limit, self.batch = model, tokenizer, limit, batch
        self.rng = torch.Generator().manual_seed(seed)

    def __call__(self, prompts: Sequence[str]) -> list[Answer]:
        """One answer to each prompt. Prompts of one length are answered together, so that none is padded.

        Args:
            prompts: of the user.
        """
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
            probabilities = output.logits[:, -1].float().softmax(-1).cpu()
            token = torch.multinomial(probabilities, 1, generator=self.rng)
            drawn[rows, step] = token[:, 0]
            unfinished = token[:, 0] != end
            ended[rows[~unfinished]] = True
            if not unfinished.any():
                break
            # Finished rows are removed from the cache once there are enough of them to be worth the copy.
            if unfinished.sum() < 0.8 * len(rows):
                cache.batch_select_indices(unfinished.nonzero()[:, 0].to(device))
                rows, token = rows[unfinished], token[unfinished]
            step_input = token
        return [self._answer(ids, bool(has_end)) for ids, has_end in zip(drawn.tolist(), ended, strict=True)]

    def _answer(self, ids: list[int], ended: bool) -> Answer:
        end = self.tokenizer.eos_token_id
        body = ids[: ids.index(end)] if ended else ids
        has_control = any(token in self.tokenizer.all_special_ids for token in body)
        return Answer(self.tokenizer.decode(body, skip_special_tokens=True), ended and not has_control and bool(body))


def two_answers(sampler: Callable[[Sequence[str]], list[Answer]], prompts: Sequence[str]) -> list[tuple[str, str]]:
    """Two different usable answers to each prompt; an answer that cannot be used is drawn again.

    Args:
        sampler: draws one answer to each prompt.
        prompts: of the user.

    Raises:
        DpobenchError: the model does not end its answers, or always gives the same one.
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
        missing = [i for i in range(len(prompts)) if i not in texts]
        if not missing:
            return [texts[i] for i in range(len(prompts))]
        for i, answer in zip(missing, sampler([prompts[i] for i in missing]), strict=True):
            if answer.usable:
                texts[i] = answer.text
    raise DpobenchError(f"the base model does not end its answer to {prompts[missing[0]]!r}; train it for more steps")


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
        prompts: of the user.
        answers: two answers to each.
        reward: gold score and its parts.
        settings: temperature and length bonus.
        noise: share of labels flipped after they are drawn, from 0 to 1.
        rng: source of the draws.
    """
    pairs = []
    for prompt, (first, second) in zip(prompts, answers, strict=True):
        parts = (reward(prompt, first), reward(prompt, second))
        rewards = [p["score"] + settings.length_bonus * p["words"] for p in parts]
        difference = (rewards[0] - rewards[1]) / settings.temperature
        # The logistic function, in a form that cannot overflow.
        probability = 0.5 * (1 + math.tanh(difference / 2))
        swap, flipped = rng.random() >= probability, rng.random() < noise
        texts, scores = (first, second), (parts[0]["score"], parts[1]["score"])
        if swap != flipped:
            texts, scores, probability = (second, first), (scores[1], scores[0]), 1 - probability
        pairs.append(Pair(prompt, texts, scores, flipped, min(1 - _NEAREST, max(_NEAREST, probability))))
    return pairs


def split_prompts(grammar: Grammar, settings: Settings) -> tuple[list[str], list[str]]:
    """Draw training and held-out prompts.

    Args:
        grammar: whose prompts.
        settings: seed, and how many of each.

    Returns: `settings.pairs` training prompts, no two of which differ by more than one in how often they occur, and `settings.prompts`
        held-out prompts, each once; no text is in both.
    """
    rng = random.Random(f"prompts:{settings.seed}")
    prompts = grammar.review_prompts()
    training = [prompt for prompt in prompts if not is_held_out(prompt)]
    held_out = [prompt for prompt in prompts if is_held_out(prompt)]
    rng.shuffle(training)
    rounds = -(-settings.pairs // len(training))
    return (training * rounds)[: settings.pairs], rng.sample(held_out, settings.prompts)


def lines(rows: Iterable[object]) -> str:
    r"""Rows as JSON lines.

    Example:
        >>> lines([{"id": "a"}])
        '{"id": "a"}\n'
    """
    return "".join(json.dumps(row) + "\n" for row in rows)
