"""Activations of decoder layers, computed again in backward instead of stored: less memory for one forward pass more."""

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from torch.utils.checkpoint import checkpoint

from dpobench.errors import UserError
from dpobench.models.protocols import CausalLM


class _Layer(Protocol):
    training: bool


def recompute(model: CausalLM) -> None:
    """Store only what enters each decoder layer.

    The library asks for a layer's flag of training, which is set for that question alone: while the layer works it is in evaluation
    mode as its parts are, so that no dropout acts and gradients are those without it, to the last bit. `model.eval()` ends it.

    Args:
        model: a causal language model of transformers.

    Raises:
        UserError: its layers are not of the kind that transformers can compute again.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [layer for layer in model.modules() if isinstance(layer, GradientCheckpointingLayer)]
    if not layers:
        raise UserError(
            f"recipe.recompute_activations: the layers of {type(model).__name__} cannot be computed again; leave it out"
        )
    for layer in layers:
        layer.gradient_checkpointing = True
        layer._gradient_checkpointing_func = partial(_checkpointed, layer)
        layer.training = True


def _checkpointed(layer: _Layer, function: Callable[..., Any], *arguments: Any) -> Any:
    evaluated = partial(_in_evaluation, layer, function)
    return checkpoint(evaluated, *arguments, use_reentrant=False, preserve_rng_state=False)


def _in_evaluation(layer: _Layer, function: Callable[..., Any], *arguments: Any) -> Any:
    layer.training = False
    try:
        return function(*arguments)
    finally:
        layer.training = True
