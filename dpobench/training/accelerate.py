"""Accelerate's device, precision and collectives, and a policy made ready for them."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Protocol

import torch
from torch import Tensor, nn

from dpobench.errors import UserError
from dpobench.models.activation_checkpointing import recompute
from dpobench.models.protocols import CausalLM, LanguageModel
from dpobench.training.run import Recipe


class Accelerator(Protocol):
    """What this project uses of accelerate's class of that name; its data loading and state files are not used."""

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        ...

    @property
    def num_processes(self) -> int:
        """Processes that share a batch."""
        ...

    @property
    def process_index(self) -> int:
        """Number of this process, from 0."""
        ...

    @property
    def is_main_process(self) -> bool:
        """Whether this is the process that writes files."""
        ...

    @property
    def mixed_precision(self) -> str:
        """Precision of the arithmetic: "bf16", or "no" for that of the weights."""
        ...

    def prepare(self, model: CausalLM, optimizer: torch.optim.Optimizer) -> tuple[LanguageModel, torch.optim.Optimizer]:
        """Wrap both for the processes and the precision."""
        ...

    def unwrap_model(self, model: LanguageModel, keep_fp32_wrapper: bool = True) -> CausalLM:
        """The model within a prepared one; without the wrapper it leaves autocast, too."""
        ...

    def autocast(self) -> AbstractContextManager[None]:
        """While open, operations run in the precision of the arithmetic."""
        ...

    def no_sync(self, model: LanguageModel) -> AbstractContextManager[None]:
        """While open, gradients are added up without being exchanged."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a scalar to the weights'."""
        ...

    def gather(self, tensor: Tensor) -> Tensor:
        """The tensors of all processes, one after another along the first dimension."""
        ...

    def clip_grad_norm_(self, parameters: Iterator[nn.Parameter], max_norm: float) -> Tensor:
        """Shorten the gradient to a norm. Returns its norm before."""
        ...

    def wait_for_everyone(self) -> None:
        """Return when every process is here."""
        ...

    def free_memory(self) -> object:
        """Forget prepared models and optimizers."""
        ...


def accelerator_for(device: str, precision: str) -> Accelerator:
    """Accelerate for one device kind and precision.

    Args:
        device: "cpu", "cuda" or one of several: "cuda:1".
        precision: "float32" or "bf16".

    Raises:
        UserError: this process does not see such a device.
    """
    import accelerate
    from accelerate.state import AcceleratorState
    from accelerate.utils import InitProcessGroupKwargs

    mixed = "bf16" if precision == "bf16" else "no"
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != mixed:
        AcceleratorState._reset_state(reset_partial_state=False)
    # The first process prepares and scores while the others wait in a collective: longer than the defaults allow.
    patience = InitProcessGroupKwargs(timeout=timedelta(days=7))
    accelerator: Accelerator = accelerate.Accelerator(
        cpu=device == "cpu", mixed_precision=mixed, kwargs_handlers=[patience]
    )
    if accelerator.device.type != device.partition(":")[0]:
        raise UserError(
            f"{device} was requested, this process sees {accelerator.device.type}; check CUDA_VISIBLE_DEVICES"
        )
    return accelerator


def prepared(policy: CausalLM, accelerator: Accelerator, recipe: Recipe) -> tuple[LanguageModel, torch.optim.Optimizer]:
    """A policy in float32, which stays the master copy in bf16 too, made ready for the processes, with its optimizer."""
    if recipe.recompute_activations:
        recompute(policy)
    optimizer = torch.optim.AdamW(
        policy.parameters(), lr=0.0, betas=(0.9, 0.999), eps=1e-8, weight_decay=recipe.weight_decay, fused=True
    )
    return accelerator.prepare(policy, optimizer)
