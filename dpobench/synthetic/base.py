"""The base model: a small Llama, pre-trained and fine-tuned in one pass on what the grammar writes."""

import contextlib
import hashlib
import math
import random
from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from dpobench.synthetic import lessons
from dpobench.synthetic.grammar import Grammar
from dpobench.synthetic.settings import Settings
from dpobench.synthetic.tokenizer import ASSISTANT, BEGIN, END, PAD, USER, words

HELD_OUT_SHARE = 0.27
_MIX = {"review": 0.17, "steered": 0.21, "fact": 0.26, "sequence": 0.22, "sum": 0.14}
# AdamW trains every weight but the matrices between layers, at this share of their learning rate.
_ADAMW_SHARE = 0.3
_IGNORED = -100


def is_held_out(prompt: str) -> bool:
    """Whether a review prompt is excluded from every training: a property of its text, the same in all presets."""
    return hashlib.sha256(f"held-out:{prompt}".encode()).digest()[0] < 256 * HELD_OUT_SHARE


@contextlib.contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """Use one thread and a seeded generator within, so that sums have one order on every machine; restore the caller's afterwards.

    Args:
        seed: of torch's generator.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)


class Corpus:
    """An endless stream of dialogues.

    Args:
        grammar: writes the reviews.
        vocabulary: token ids.
        seed: of the stream.
    """

    def __init__(self, grammar: Grammar, vocabulary: Mapping[str, int], seed: int) -> None:
        self.grammar, self.vocabulary = grammar, vocabulary
        self.rng = random.Random(f"corpus:{seed}")
        self._reviews = [prompt for prompt in grammar.review_prompts() if not is_held_out(prompt)]
        self._steered = grammar.steered_prompts()
        self._lessons = {
            "fact": lessons.facts(grammar.world),
            "sequence": lessons.sequences(),
            "sum": lessons.sums(),
        }

    def dialogue(self) -> tuple[str, str]:
        """A question and its answer."""
        kind = self.rng.choices(tuple(_MIX), tuple(_MIX.values()))[0]
        if kind in self._lessons:
            lesson = self.rng.choice(self._lessons[kind])
            return lesson.question, lesson.text
        prompt = self.rng.choice(self._reviews if kind == "review" else self._steered)
        request = self.grammar.read_prompt(prompt)
        assert request is not None
        return prompt, self.grammar.write(request, self.rng)

    def encode(self, question: str, answer: str) -> tuple[list[int], int]:
        """Token ids of a dialogue as the chat template writes it.

        Args:
            question: of the user.
            answer: of the assistant.

        Returns: the ids, and how many of them come before the answer.
        """
        ids = self.vocabulary
        prompt = [ids[BEGIN], ids[USER], *(ids[w] for w in words(question)), ids[ASSISTANT]]
        return [*prompt, *(ids[w] for w in words(answer)), ids[END]], len(prompt)

    def batch(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """One step's dialogues in two parts, short and long ones, so that there is little padding.

        Args:
            size: dialogues of the step.

        Yields: inputs and labels, int64 [rows, tokens] each; only answers are labelled.
        """
        rows = sorted((self.encode(*self.dialogue()) for _ in range(size)), key=lambda row: len(row[0]))
        short = sum(len(ids) < 28 for ids, _ in rows)
        for part in (rows[:short], rows[short:]):
            if part:
                yield self.pad(part)

    def pad(self, rows: Sequence[tuple[list[int], int]]) -> tuple[Tensor, Tensor]:
        """Encoded dialogues as inputs and labels, int64 [rows, tokens] each, padded on the right.

        Args:
            rows: ids of each dialogue, and how many of them come before the answer.
        """
        width = max(len(ids) for ids, _ in rows)
        inputs = torch.full((len(rows), width), self.vocabulary[PAD])
        labels = torch.full((len(rows), width), _IGNORED)
        for i, (ids, start) in enumerate(rows):
            inputs[i, : len(ids)] = torch.tensor(ids)
            labels[i, start : len(ids)] = torch.tensor(ids[start:])
        return inputs, labels


def new_model(settings: Settings, vocabulary: Mapping[str, int]) -> LlamaForCausalLM:
    """An untrained model of the settings' size; the caller seeds torch's generator.

    Args:
        settings: width, depth, heads and context.
        vocabulary: token ids.
    """
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=settings.hidden,
        intermediate_size=8 * math.ceil(settings.hidden / 3),
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        max_position_embeddings=settings.max_tokens,
        attention_dropout=0.0,
        tie_word_embeddings=False,
        pad_token_id=vocabulary[PAD],
        bos_token_id=vocabulary[BEGIN],
        eos_token_id=vocabulary[END],
        dtype="float32",
    )
    model = LlamaForCausalLM(config)
    # Every program that loads this folder then samples from the model's own distribution by default.
    model.generation_config.update(do_sample=True, temperature=1.0, top_k=0, top_p=1.0)
    return model


def answer_loss(model: LlamaForCausalLM, inputs: Tensor, labels: Tensor) -> Tensor:
    """Summed negative log-probability of each row's answer, nats, float32 [rows].

    Padding is on the right and attention is causal, so padding needs no mask.

    Args:
        model: a causal language model.
        inputs: token ids, int64 [rows, tokens].
        labels: the same where a token belongs to the answer, -100 elsewhere.
    """
    logits = model(input_ids=inputs, use_cache=False).logits[:, :-1].float()
    losses = F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=_IGNORED, reduction="none")
    return losses.view(len(inputs), -1).sum(-1)


def _optimizers(model: LlamaForCausalLM, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices between layers, AdamW for the rest: half the steps that AdamW alone needs."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and ".layers." in name]
    rest = [p for name, p in model.named_parameters() if p.ndim != 2 or ".layers." not in name]
    return [
        torch.optim.Muon(matrices, lr=rate, weight_decay=0.01),
        torch.optim.AdamW(rest, lr=_ADAMW_SHARE * rate, betas=(0.9, 0.98), weight_decay=0.01),
    ]


def train_base(settings: Settings, corpus: Corpus, device: torch.device) -> LlamaForCausalLM:
    """Train the base model: a short warm-up, then a cosine.

    Args:
        settings: size, steps, batch and learning rate.
        corpus: what it reads.
        device: where it is trained.

    Returns: the model on `device`, in evaluation mode.
    """
    model = new_model(settings, corpus.vocabulary).to(device).train()
    optimizers = _optimizers(model, settings.learning_rate)
    warmup = max(1, settings.steps // 20)

    def rate(step: int) -> float:
        progress = max(0.0, (step - warmup) / max(1, settings.steps - warmup))
        return min((step + 1) / warmup, max(0.02, 0.5 * (1 + math.cos(math.pi * progress))))

    schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, rate) for optimizer in optimizers]
    for _ in range(settings.steps):
        # Each part weighs the same: weighted by tokens, the short answers of facts and sums would hardly be learnt.
        for inputs, labels in corpus.batch(settings.batch):
            answer_tokens = (labels != _IGNORED).sum().item()
            loss = answer_loss(model, inputs.to(device), labels.to(device)).sum() / (2 * answer_tokens)
            torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        model.zero_grad()
    return model.eval()


@torch.no_grad()
def held_out_losses(
    model: LlamaForCausalLM, corpus: Corpus, texts: Sequence[tuple[str, str]], device: torch.device
) -> list[float]:
    """Negative log-probability of each answer, nats a text, to be compared with the grammar's exact one.

    Args:
        model: a causal language model on `device`.
        corpus: encodes and pads.
        texts: questions with their answers.
        device: where the model is.
    """
    losses: list[float] = []
    for start in range(0, len(texts), 64):
        inputs, labels = corpus.pad([corpus.encode(*text) for text in texts[start : start + 64]])
        losses += answer_loss(model, inputs.to(device), labels.to(device)).tolist()
    return losses
