"""What is kept while a training goes on: a state to go on from after a kill, and checkpoints that are scored beside the last one."""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from dpobench.artifacts.files import building, read_json, seal, sealed, verify, write_json
from dpobench.errors import Damaged
from dpobench.models import checkpoint
from dpobench.training.blocks import Beside

_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Saving:
    """What a training keeps on its way.

    Args:
        folder: of its resumable state.
        every: seconds between two states.
        within: numbers of steps after which the policy is kept as a checkpoint of its own.
    """

    folder: Path
    every: float = 600.0
    within: tuple[int, ...] = ()

    @property
    def kept(self) -> Path:
        """Where the checkpoints lie, each in a folder named after its step, until the training is whole."""
        return self.folder.with_name(f"{self.folder.name}.within")


def keep(saving: Saving | None, step: int, model: Any, start: Path, accelerator: Any) -> None:
    """Keep the policy after so many steps, if that is asked for: an ordinary Hugging Face folder. Training goes on as it would."""
    if saving is not None and step in saving.within and accelerator.is_main_process:
        # What `prepare` laid around the forward pass stays there: the next step needs it.
        bare = accelerator.unwrap_model(model)
        with building(saving.kept / str(step)) as part:
            bare.save_pretrained(part / "checkpoint", safe_serialization=True)
            checkpoint.load_tokenizer(start).save_pretrained(part / "checkpoint")


def save(
    saving: Saving | None,
    saved: float,
    model: Any,
    optimizer: Any,
    beside: Beside,
    note: dict[str, Any],
    accelerator: Any,
) -> float:
    """Keep weights, moments, a moved reference, statistics, step and log, if it is time: a killed run goes on to the same bits.

    Each process decides by its own clock, so there is no barrier here: the first one writes, the others wait in the next step.

    Returns: when the last state was kept, seconds of the clock that never goes back.
    """
    if saving is None or time.monotonic() - saved <= saving.every:
        return saved
    if accelerator.is_main_process:
        inner, base = accelerator.unwrap_model(model), getattr(optimizer, "optimizer", optimizer)
        tensors = {f"weight.{name}": value.detach().contiguous() for name, value in inner.named_parameters()}
        for name, weight in inner.named_parameters():
            tensors |= {f"{kind}.{name}": base.state[weight][kind] for kind in _MOMENTS}
        if beside.moves:
            tensors |= {f"reference.{name}": value.contiguous() for name, value in beside.reference.named_parameters()}
        with building(saving.folder) as part:
            save_file(tensors, part / "state.safetensors")
            write_json(part / "state.json", note | {"statistics": dict(beside.statistics)})
            seal(part)
    return time.monotonic()


def resumed(
    saving: Saving | None, model: Any, optimizer: Any, accelerator: Any, beside: Beside
) -> tuple[int, dict[str, Any], list[dict[str, Any]], Beside]:
    """Load a state that was kept whole; start over where there is none.

    Returns: the step to go on with, what `train` had found by then, the log, and what goes beside the policy.
    """
    if saving is None or not sealed(saving.folder):
        return 0, {}, [], beside
    try:
        verify(saving.folder)
    except Damaged:
        # A state saves time, nothing else: from the start the run ends with the same numbers.
        return 0, {}, [], beside
    note = read_json(saving.folder / "state.json")
    if any(step <= note["step"] and not (saving.kept / str(step)).is_dir() for step in saving.within):
        return 0, {}, [], beside  # a checkpoint is asked for that this training went past
    tensors = load_file(saving.folder / "state.safetensors", device=str(accelerator.device))
    inner, base = accelerator.unwrap_model(model), getattr(optimizer, "optimizer", optimizer)
    with torch.no_grad():
        for name, weight in inner.named_parameters():
            weight.copy_(tensors[f"weight.{name}"])
            step = torch.tensor(float(note["step"]), device=accelerator.device)
            base.state[weight] = {"step": step, **{kind: tensors[f"{kind}.{name}"] for kind in _MOMENTS}}
        for name in [name.removeprefix("reference.") for name in tensors if name.startswith("reference.")]:
            beside.reference.get_parameter(name).copy_(tensors[f"reference.{name}"])
    return note["step"], note["result"], note["log"], replace(beside, statistics=note["statistics"])
