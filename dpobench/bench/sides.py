"""The two sides: one optimizer step of our harness, and one of TRL's trainer, on the same pairs."""

import copy
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from dpobench.bench.works import word_tokenizer
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

# TRL subtracts sums of log-probabilities, hundreds of nats, in float32; a larger beta would let that rounding fill the tolerance.
BETA, RATE, CLIP = 0.01, 1e-6, 1.0


@loss(source="Rafailov et al. 2023, arXiv:2305.18290, eq. 7", beta_grid=(BETA,))
def logistic(pairs: Pairs, *, beta: float = BETA) -> PerPair:
    """The loss both sides are timed with, TRL's default; that it is the same is checked before anything is timed."""
    return -F.logsigmoid(beta * pairs.margin)


def logistic_loss() -> Bound:
    """The same, bound to its beta."""
    return Variant("variant", "logistic", logistic, spec_of(logistic, LossSpec), Path(__file__)).bind(beta=BETA)


class Ours:
    """Our side: the harness's step with the recipe's micro-batches.

    Args:
        policy: weights to start from; they are copied.
        rows: the pairs of one step, with the reference's log-probabilities.
        bound: the loss.
        precision: "float32" or "bf16".
        device: "cpu" or "cuda".
    """

    def __init__(
        self, policy: Any, rows: Sequence[TokenPair], bound: Bound, precision: str = "float32", device: str = "cpu"
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

    def move(self) -> None:
        """Clip and take the optimizer's step."""
        self.accelerator.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad()


class Theirs:
    """TRL's side: its trainer with its own preparation, collation, metrics and optimizer; reference precomputed by it.

    Args:
        policy: weights to start from; they are copied.
        reference: the reference.
        texts: the pairs of one step, columns `prompt`, `chosen`, `rejected`.
        folder: where TRL may write.
        micro_batch: its batch per device; gradients are accumulated over the rest of the step.
        precision: "float32" or "bf16".
        device: "cpu" or "cuda".
        settings: fields of its configuration that differ.
    """

    def __init__(
        self,
        policy: Any,
        reference: Any,
        texts: Sequence[dict[str, str]],
        folder: Path,
        *,
        micro_batch: int,
        precision: str = "float32",
        device: str = "cpu",
        **settings: Any,
    ) -> None:
        from datasets import Dataset
        from trl import DPOConfig, DPOTrainer

        told: dict[str, Any] = {
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
                args=DPOConfig(output_dir=str(folder), **(told | settings)),
                train_dataset=Dataset.from_list(list(texts)),
                processing_class=word_tokenizer(len(reference.get_input_embeddings().weight)),
            )
        self.trainer.model.load_state_dict(policy.state_dict())
        self.model = self.trainer.accelerator.prepare(self.trainer.model)
        self.optimizer = self.trainer.accelerator.prepare(self.trainer.create_optimizer())
        names = ("prompt_ids", "chosen_ids", "rejected_ids", "ref_chosen_logps", "ref_rejected_logps")
        self.rows = [{name: row[name] for name in names} for row in self.trainer.train_dataset]
        self.micro_batch = micro_batch

    def accumulate(self) -> float:
        """Add the gradient of a step. Returns: the mean loss."""
        parts = [self.rows[i : i + self.micro_batch] for i in range(0, len(self.rows), self.micro_batch)]
        self.trainer.current_gradient_accumulation_steps = len(parts)
        losses = [self.trainer.training_step(self.model, self.trainer.data_collator(part)) for part in parts]
        return float(torch.stack(losses).sum())

    def move(self) -> None:
        """Clip and take the optimizer's step."""
        self.trainer.accelerator.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimizer.step()
        self.model.zero_grad()

    def pairs(self, reference: Any) -> list[TokenPair]:
        """The tokens TRL made of the texts, with our log-probabilities of the reference."""
        sides = [(row["prompt_ids"], row[name]) for row in self.rows for name in ("chosen_ids", "rejected_ids")]
        logps = iter(score_sequences(reference, sides))
        found = []
        for number, row in enumerate(self.rows):
            prompt, chosen, rejected = (
                np.asarray(row[f"{name}_ids"], np.int64) for name in ("prompt", "chosen", "rejected")
            )
            pair = TokenPair(str(number), prompt, chosen, rejected)
            found.append(pair.with_reference(next(logps), next(logps)))
        return found


def disagreement(ours: Ours, rivals: Sequence[Theirs]) -> tuple[float, float]:
    """Largest relative difference of the loss and of the gradient of a step. All sides take that step, which warms them up."""
    own = ours.accumulate()
    of_loss, of_gradient = 0.0, 0.0
    for rival in rivals:
        of_loss = max(of_loss, abs(own / rival.accumulate() - 1))
        of_gradient = max(of_gradient, _apart(ours.model, rival.model))
        rival.move()
    ours.move()
    return of_loss, of_gradient


def _apart(model: Any, other: Any) -> float:
    """Relative difference of two models' gradients, weight by weight: all of them at once may not fit beside the models."""
    squares = torch.zeros(2, dtype=torch.float64)
    for weight, its in zip(model.parameters(), other.parameters(), strict=True):
        wanted = its.grad.double()
        squares += torch.stack([(weight.grad.double() - wanted).square().sum(), wanted.square().sum()]).cpu()
    return float((squares[0] / squares[1]).sqrt())
