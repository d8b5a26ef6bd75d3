"""The stages in which a world is made: train, measure, compare, save."""

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import fmean

import torch
from transformers import LlamaForCausalLM
from transformers.utils import logging

from dpobench.artifacts.files import digest
from dpobench.synthetic import gold
from dpobench.synthetic.base import Corpus, held_out_losses, train_base
from dpobench.synthetic.grammar import Grammar
from dpobench.synthetic.preferences import Pair, PairRow, Reward, Sampler, label, lines, split_prompts, two_answers
from dpobench.synthetic.settings import Settings
from dpobench.synthetic.tasks import write_tasks
from dpobench.synthetic.tokenizer import make_tokenizer


class Construction:
    """A world under construction: call `train`, `measure`, `compare` in this order, then `files` and `save`.

    Args:
        settings: of the world; the device is "cpu" or "cuda".
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.grammar = Grammar(settings.world, settings.lexicon)
        self.tokenizer = make_tokenizer(self.grammar, settings.max_tokens)
        self.corpus = Corpus(self.grammar, self.tokenizer.get_vocab(), settings.seed)
        self.training_prompts, self.held_out_prompts = split_prompts(self.grammar, settings)
        self.reviews = self._write_reviews()
        long = settings.statements > 4
        self.reward: Reward = gold.score_long if long else gold.score
        self.best_statements = min(settings.statements, gold.ASPECT_LIMIT * (2 if long else 1))
        self.measured: dict[str, float] = {}
        self.training: list[Pair] = []
        self.held_out: list[Pair] = []
        self._model: LlamaForCausalLM | None = None

    def _write_reviews(self) -> list[tuple[str, str]]:
        rng = random.Random(f"reviews:{self.settings.seed}")
        reviews = []
        for prompt in (self.held_out_prompts[i % self.settings.prompts] for i in range(self.settings.reviews)):
            request = self.grammar.read_prompt(prompt)
            assert request is not None
            reviews.append((prompt, self.grammar.write(request, rng)))
        return reviews

    @property
    def model(self) -> LlamaForCausalLM:
        """The base model, once it is trained."""
        assert self._model is not None
        return self._model

    def train(self) -> None:
        """Train the base model."""
        self._model = train_base(self.settings, self.corpus, torch.device(self.settings.device))
        self.measured["parameters"] = sum(p.numel() for p in self.model.parameters())

    def measure(self) -> None:
        """Measure the loss on held-out reviews and its floor, the grammar's exact one, nats a text."""
        losses = held_out_losses(self.model, self.corpus, self.reviews, torch.device(self.settings.device))
        self.measured |= {"held_out_loss": fmean(losses), "floor": -fmean(map(self._log_probability, self.reviews))}

    def _log_probability(self, review: tuple[str, str]) -> float:
        request = self.grammar.read_prompt(review[0])
        assert request is not None
        return self.grammar.log_probability(request, review[1])

    def compare(self) -> None:
        """Draw two answers to every prompt, and the label that says which is preferred."""
        settings = self.settings
        limit = settings.max_tokens - 24
        sampler = Sampler(self.model, self.tokenizer, settings.seed, limit)
        rng = random.Random(f"labels:{settings.seed}")

        prompts, count = [*self.training_prompts, *self.held_out_prompts], len(self.training_prompts)
        answers = two_answers(sampler, prompts)
        noise = settings.label_noise
        self.training = label(prompts[:count], answers[:count], self.reward, settings, noise=noise, rng=rng)
        self.held_out = label(prompts[count:], answers[count:], self.reward, settings, noise=0.0, rng=rng)
        self.measured |= {
            "label_flip_rate": _share(self.training, lambda pair: pair.flipped),
            "label_disagrees_with_score": _share(self.training, lambda pair: pair.scores[0] < pair.scores[1]),
            "held_out_label_disagrees_with_score": _share(self.held_out, lambda pair: pair.scores[0] < pair.scores[1]),
        }
        scored = [self.reward(pair.prompt, text) for pair in self.held_out for text in pair.answers]
        self.measured["clean"] = fmean(map(gold.is_clean, scored))
        self.measured |= {f"mean_{part}": fmean(parts[part] for parts in scored) for part in scored[0]}

    def files(self) -> dict[str, str]:
        """Names and contents of the JSON lines files."""
        prompts = [[{"role": "user", "content": prompt}] for prompt in self.held_out_prompts]
        return {
            "train.jsonl": lines(self._rows("train", self.training)),
            "heldout.jsonl": lines(self._rows("heldout", self.held_out)),
            "prompts.jsonl": lines({"id": digest(messages), "prompt": messages} for messages in prompts),
        }

    def _rows(self, name: str, pairs: Sequence[Pair]) -> Iterator[PairRow]:
        for i, pair in enumerate(pairs):
            yield pair.row(f"{name}-{i:05d}", self.best_answer(pair.prompt))

    def best_answer(self, prompt: str) -> str:
        """A review with the highest reward there is: it depends on settings, seed and prompt alone, not on other draws."""
        request = self.grammar.read_prompt(prompt)
        assert request is not None
        rng = random.Random(f"best:{self.settings.seed}:{prompt}")
        return self.grammar.write_best(request, self.best_statements, rng)

    def save(self, folder: Path) -> None:
        """Write model, tokenizer and tasks into a folder."""
        self.save_model(folder)
        write_tasks(folder / "tasks", self.grammar, self.reviews, self.held_out_prompts, self.settings.seed)

    def save_model(self, folder: Path) -> None:
        """Write model and tokenizer into `model/` of a folder."""
        # One file of a megabyte needs no progress bar.
        visible = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()
        try:
            self.model.cpu().save_pretrained(folder / "model")
        finally:
            if visible:
                logging.enable_progress_bar()
        self.tokenizer.save_pretrained(folder / "model")


def _share(pairs: Sequence[Pair], condition: Callable[[Pair], bool]) -> float:
    return fmean(map(condition, pairs))
