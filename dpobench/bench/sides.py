"""The two sides: an optimizer step of our harness, and one of TRL's trainer, on the same pairs."""

import contextlib
import copy
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypedDict, TypeVar

import numpy as np
import torch
import torch.nn.functional as F

from dpobench.bench.workloads import TextPair, word_tokenizer
from dpobench.data.tokens import TokenPair
from dpobench.losses.pairs import Pairs, PerPair
from dpobench.losses.registry import loss
from dpobench.losses.spec import LossSpec
from dpobench.losses.variant import Bound, Variant
from dpobench.models.logprobs import score_sequences
from dpobench.models.packing import adopt
from dpobench.plugins.registry import spec_of
from dpobench.training.accelerate import accelerator_for
from dpobench.training.gradient import gradient
from dpobench.training.loss_inputs import AuxiliaryState
from dpobench.training.run import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# TRL subtracts sums of log-probabilities, hundreds of nats, in float32; a larger beta would let that rounding fill the tolerance.
BETA, RATE, CLIP = 0.01, 1e-6, 1.0


@loss(source="Rafailov et al. 2023, arXiv:2305.18290, eq. 7", beta_grid=(BETA,))
def logistic(pairs: Pairs, *, beta: float = BETA) -> PerPair:
    """The loss that both sides are timed with, TRL's default; before timing, loss and gradient of the sides are compared."""
    return -F.logsigmoid(beta * pairs.margin)


def logistic_loss() -> Bound:
    """The logistic loss at `BETA`."""
    return Variant("variant", "logistic", logistic, spec_of(logistic, LossSpec), Path(__file__)).bind(beta=BETA)


class TrlRow(TypedDict):
    """A pair as TRL tokenised it, with its log-probabilities of the reference, nats, summed over tokens."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    ref_chosen_logps: float
    ref_rejected_logps: float


_Row = TypeVar("_Row")


class Side(ABC, Generic[_Row]):
    """An optimizer step on fixed pairs, as one of the two sides takes it."""

    model: "PreTrainedModel"
    rows: Sequence[_Row]

    @abstractmethod
    def accumulate(self) -> float:
        """Add the gradient of a step. Returns: the mean loss."""

    @abstractmethod
    def update(self) -> None:
        """Clip the gradient and take the optimizer's step."""

    @staticmethod
    @abstractmethod
    def tokens(row: _Row) -> int:
        """Tokens of both sequences of a pair, the prompt counted twice."""

    def step(self) -> None:
        """A whole step."""
        self.accumulate()
        self.update()

    @contextlib.contextmanager
    def only_shortest(self, count: int) -> Iterator[None]:
        """Within, a step consists of the shortest pairs alone."""
        rows = self.rows
        self.rows = sorted(rows, key=self.tokens)[:count]
        try:
            yield
        finally:
            self.rows = rows


class HarnessSide(Side[TokenPair]):
    """Our side: the harness's step with the recipe's micro-batches.

    Args:
        policy: weights to start from; they are copied.
        rows: the pairs of one step, with the reference's log-probabilities.
        bound: the loss.
        precision: "float32" or "bf16".
        device: "cpu" or "cuda".
    """

    def __init__(
        self,
        policy: "PreTrainedModel",
        rows: Sequence[TokenPair],
        bound: Bound,
        precision: str = "float32",
        device: str = "cpu",
    ) -> None:
        self.rows, self.bound = rows, bound
        self.accelerator = accelerator_for(device, precision)
        model = copy.deepcopy(policy).to(self.accelerator.device)
        self.auxiliary = AuxiliaryState(packed=adopt(model, rows) is None)
        optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, fused=True)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)

    def accumulate(self) -> float:
        """Add the gradient of a step. Returns: the mean loss."""
        budget = Recipe().micro_batch_tokens
        measured = gradient(self.model, self.bound, self.rows, self.accelerator, budget, self.auxiliary)
        return float(measured.per_pair["loss"].mean())

    def update(self) -> None:
        """Clip the gradient and take the optimizer's step."""
        self.accelerator.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad()

    @staticmethod
    def tokens(row: TokenPair) -> int:
        """Tokens of both sequences of a pair, the prompt counted twice."""
        return row.size


class TrlSide(Side[TrlRow]):
    """TRL's side: its trainer with its preparation, collation, metrics and optimizer; it precomputes the reference.

    Args:
        policy: weights to start from; they are copied.
        reference: the reference.
        texts: the pairs of one step, columns `prompt`, `chosen`, `rejected`.
        folder: where TRL may write.
        micro_batch: its batch per device; gradients are accumulated over the rest of the step.
        precision: "float32" or "bf16".
        device: "cpu" or "cuda".
        settings: fields of its `DPOConfig` that differ.
    """

    def __init__(
        self,
        policy: "PreTrainedModel",
        reference: "PreTrainedModel",
        texts: Sequence[TextPair],
        folder: Path,
        *,
        micro_batch: int,
        precision: str = "float32",
        device: str = "cpu",
        **settings: object,
    ) -> None:
        from datasets import Dataset
        from trl import DPOConfig, DPOTrainer

        configuration: dict[str, object] = {
            "per_device_train_batch_size": micro_batch,
            "gradient_accumulation_steps": len(texts) // micro_batch,
            "precompute_ref_log_probs": True,
            "gradient_checkpointing": False,
            "bf16": precision == "bf16",
            "use_cpu": device == "cpu",
            "report_to": "none",
            "save_strategy": "no",
            "disable_tqdm": True,
            "max_length": None,
            "beta": BETA,
            "learning_rate": RATE,
            "max_grad_norm": CLIP,
        }
        with warnings.catch_warnings():
            # TRL still uses option names that transformers will drop.
            warnings.simplefilter("ignore", FutureWarning)
            self.trainer = DPOTrainer(
                model=copy.deepcopy(reference),
                args=DPOConfig(output_dir=str(folder), **(configuration | settings)),
                train_dataset=Dataset.from_list(list(texts)),
                processing_class=word_tokenizer(len(reference.get_input_embeddings().weight)),
            )
        self.trainer.model.load_state_dict(policy.state_dict())
        self.model = self.trainer.accelerator.prepare(self.trainer.model)
        self.optimizer = self.trainer.accelerator.prepare(self.trainer.create_optimizer())
        self.rows: Sequence[TrlRow] = [
            {
                "prompt_ids": row["prompt_ids"],
                "chosen_ids": row["chosen_ids"],
                "rejected_ids": row["rejected_ids"],
                "ref_chosen_logps": row["ref_chosen_logps"],
                "ref_rejected_logps": row["ref_rejected_logps"],
            }
            for row in self.trainer.train_dataset
        ]
        self.micro_batch = micro_batch

    def accumulate(self) -> float:
        """Add the gradient of a step. Returns: the mean loss."""
        parts = [self.rows[i : i + self.micro_batch] for i in range(0, len(self.rows), self.micro_batch)]
        self.trainer.current_gradient_accumulation_steps = len(parts)
        losses = [self.trainer.training_step(self.model, self.trainer.data_collator(part)) for part in parts]
        return float(torch.stack(losses).sum())

    def update(self) -> None:
        """Clip the gradient and take the optimizer's step."""
        self.trainer.accelerator.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimizer.step()
        self.model.zero_grad()

    @staticmethod
    def tokens(row: TrlRow) -> int:
        """Tokens of both sequences of a pair, the prompt counted twice."""
        return 2 * len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"])

    def pairs(self, reference: "PreTrainedModel") -> list[TokenPair]:
        """The tokens that TRL made of the texts, with log-probabilities of the reference as our harness computes them."""
        sequences = [(row["prompt_ids"], ids) for row in self.rows for ids in (row["chosen_ids"], row["rejected_ids"])]
        logps = iter(score_sequences(reference, sequences))
        pairs = []
        for number, row in enumerate(self.rows):
            prompt, chosen, rejected = (
                np.asarray(ids, np.int64) for ids in (row["prompt_ids"], row["chosen_ids"], row["rejected_ids"])
            )
            pair = TokenPair(str(number), prompt, chosen, rejected)
            pairs.append(pair.with_reference(next(logps), next(logps)))
        return pairs


def disagreement(ours: HarnessSide, trl: Sequence[TrlSide]) -> tuple[float, float]:
    """Compare a step of ours with TRL's; all sides take it, which warms them up.

    Args:
        ours: our side.
        trl: TRL's, with the same weights and pairs.

    Returns: the largest relative difference of the loss, and that of the gradient.
    """
    loss = ours.accumulate()
    of_loss, of_gradient = 0.0, 0.0
    for side in trl:
        of_loss = max(of_loss, abs(loss / side.accumulate() - 1))
        of_gradient = max(of_gradient, gradient_difference(ours.model, side.model))
        side.update()
    ours.update()
    return of_loss, of_gradient


def gradient_difference(model: torch.nn.Module, other: torch.nn.Module) -> float:
    """Norm of the difference of two models' gradients, relative to the norm of the other's.

    It is summed weight by weight: the gradients of all weights in float64 may not fit into memory next to the models.
    """
    squares = torch.zeros(2, dtype=torch.float64)
    for weight, other_weight in zip(model.parameters(), other.parameters(), strict=True):
        assert weight.grad is not None
        assert other_weight.grad is not None
        expected = other_weight.grad.double()
        squares += torch.stack([(weight.grad.double() - expected).square().sum(), expected.square().sum()]).cpu()
    return float((squares[0] / squares[1]).sqrt())
