"""Accelerate's device, precision and collectives, and a policy made ready for them."""

from datetime import timedelta
from typing import Any

import torch

from dpobench.errors import UserError
from dpobench.models.activation_checkpointing import recompute
from dpobench.training.run import Recipe


def accelerator_for(device: str, precision: str) -> Any:
    """Accelerate's device, precision and collectives; its data loading and state files are not used."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import InitProcessGroupKwargs

    mixed = "bf16" if precision == "bf16" else "no"
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != mixed:
        AcceleratorState._reset_state(reset_partial_state=False)
    # The first process prepares and scores while the others wait in a collective: longer than the defaults allow.
    patience = InitProcessGroupKwargs(timeout=timedelta(days=7))
    accelerator = Accelerator(cpu=device == "cpu", mixed_precision=mixed, kwargs_handlers=[patience])
    if accelerator.device.type != device.partition(":")[0]:
        raise UserError(
            f"{device} was asked for, this process sees {accelerator.device.type}; check CUDA_VISIBLE_DEVICES"
        )
    return accelerator


def prepared(policy: Any, accelerator: Any, recipe: Recipe) -> tuple[Any, torch.optim.AdamW]:
    """A policy in float32, which stays the master copy in bf16 too, made ready for the processes, with its optimizer."""
    if recipe.recompute_activations:
        recompute(policy)
    optimizer = torch.optim.AdamW(
        policy.parameters(), lr=0.0, betas=(0.9, 0.999), eps=1e-8, weight_decay=recipe.weight_decay, fused=True
    )
    return accelerator.prepare(policy, optimizer)
