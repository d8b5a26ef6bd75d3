"""What a training carries from step to step: saved on the way, it goes on after a kill and ends in the same bits."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dpobench.artifacts.files import building, read_json, seal, sealed, verify, write_json
from dpobench.artifacts.records import Checks, Cost
from dpobench.errors import Damaged, UserError
from dpobench.models import checkpoint
from dpobench.models.protocols import CausalLM, LanguageModel
from dpobench.training.accelerate import Accelerator
from dpobench.training.log import LogRow
from dpobench.training.loss_inputs import AuxiliaryState

# Of the files of a saved state; a state of another format is left alone and the training starts over.
FORMAT = 2
_TENSORS, _COUNTERS = "state.safetensors", "state.json"
_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Saving:
    """What a training saves on its way.

    Args:
        folder: of the state that a killed training goes on from.
        every: seconds between two states.
        within: numbers of steps after which the policy is saved as a checkpoint.
    """

    folder: Path
    every: float = 600.0
    within: tuple[int, ...] = ()

    @property
    def checkpoints(self) -> Path:
        """Where those checkpoints are, each in a folder named after its step, until the training is whole."""
        return self.folder.with_name(f"{self.folder.name}.within")

    def has_checkpoints_until(self, step: int) -> bool:
        """Whether no checkpoint is missing of a training that did so many steps."""
        return all((self.checkpoints / str(within)).is_dir() for within in self.within if within <= step)


@dataclass
class TrainingState:
    """All that one step leaves to the next.

    Args:
        model: the policy, prepared.
        optimizer: its optimizer, prepared.
        auxiliary: live or moving reference, running statistics, layout of the pairs.
        reference_moves: whether the reference follows the policy.
        layout: "packed", or "padded" and why.
        step: steps taken.
        log: a row a step.
        seconds: wall time of the steps.
        checks: figures of the check before step 0.
        cost: passes and memory.
    """

    model: LanguageModel
    optimizer: torch.optim.Optimizer
    auxiliary: AuxiliaryState
    reference_moves: bool = False
    layout: str = "padded"
    step: int = 0
    log: list[LogRow] = field(default_factory=list)
    seconds: float = 0.0
    checks: Checks = field(default_factory=Checks)
    cost: Cost = field(default_factory=lambda: Cost(forwards=0, backwards=0))

    @property
    def live_reference(self) -> CausalLM:
        """The reference model; only where one is loaded."""
        assert self.auxiliary.reference is not None
        return self.auxiliary.reference

    def set_seconds(self, seconds: float) -> None:
        """Put the wall time of the step that was just taken into its row, and add it up."""
        self.log[-1] = replace(self.log[-1], seconds=round(seconds, 4))
        self.seconds += self.log[-1].seconds

    def save(self, folder: Path, accelerator: Accelerator) -> None:
        """Write weights, moments, a moved reference, statistics, counters and log, from the main process.

        There is no barrier here: the first process writes, the others wait in the next step.
        """
        if not accelerator.is_main_process:
            return
        moments = self._moments()
        tensors = {}
        for name, weight in accelerator.unwrap_model(self.model).named_parameters():
            tensors[f"weight.{name}"] = weight.detach().contiguous()
            tensors |= {f"{kind}.{name}": moments[weight][kind] for kind in _MOMENTS}
        for name, weight in self._moved_weights():
            tensors[f"reference.{name}"] = weight.contiguous()
        counters = {
            "format": FORMAT,
            "step": self.step,
            "seconds": self.seconds,
            "checks": self.checks.model_dump(),
            "cost": self.cost.model_dump(),
            "statistics": dict(self.auxiliary.statistics),
            "reference_is_policy": self.auxiliary.reference_is_policy,
            "log": [row.as_json() for row in self.log],
        }
        with building(folder) as part:
            save_file(tensors, part / _TENSORS)
            write_json(part / _COUNTERS, counters)
            seal(part)

    def load(self, saving: Saving, accelerator: Accelerator) -> bool:
        """Go on from a state that was saved whole; nothing changes where there is none, or where a checkpoint before it is missing.

        Returns: whether a state was loaded.
        """
        if not sealed(saving.folder):
            return False
        try:
            verify(saving.folder)
        except (Damaged, UserError):  # or written in another format
            # A state saves time, nothing else: from the start the run ends with the same numbers.
            return False
        counters = read_json(saving.folder / _COUNTERS)
        if counters.get("format") != FORMAT or not saving.has_checkpoints_until(counters["step"]):
            return False
        tensors = load_file(saving.folder / _TENSORS, device=str(accelerator.device))
        moments = self._moments()
        with torch.no_grad():
            for name, weight in accelerator.unwrap_model(self.model).named_parameters():
                weight.copy_(tensors[f"weight.{name}"])
                step = torch.tensor(float(counters["step"]), device=accelerator.device)
                moments[weight] = {"step": step, **{kind: tensors[f"{kind}.{name}"] for kind in _MOMENTS}}
            for name, weight in self._moved_weights():
                weight.copy_(tensors[f"reference.{name}"])
        self.step, self.seconds = counters["step"], counters["seconds"]
        self.checks, self.cost = Checks(**counters["checks"]), Cost(**counters["cost"])
        self.log = [LogRow.from_json(row) for row in counters["log"]]
        self.auxiliary = replace(
            self.auxiliary,
            statistics=counters["statistics"],
            reference_is_policy=counters["reference_is_policy"],
        )
        return True

    def _moments(self) -> dict[Tensor, dict[str, Tensor]]:
        """Adam's running moments of every weight, to read and to write."""
        inner: torch.optim.Optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        return inner.state

    def _moved_weights(self) -> Iterator[tuple[str, nn.Parameter]]:
        if self.reference_moves:
            yield from self.live_reference.named_parameters()


def save_checkpoint(model: LanguageModel, start: Path, folder: Path, accelerator: Accelerator) -> None:
    """Save the policy as it is now as an ordinary Hugging Face folder `checkpoint/`; training goes on as it would.

    Args:
        model: the policy, prepared.
        start: folder of the start policy, whose tokenizer is copied.
        folder: to write to.
        accelerator: only the main process writes.
    """
    if accelerator.is_main_process:
        # What `prepare` laid around the forward pass stays there: the next step needs it.
        bare = accelerator.unwrap_model(model)
        with building(folder) as part:
            bare.save_pretrained(part / "checkpoint", safe_serialization=True)
            checkpoint.load_tokenizer(start).save_pretrained(part / "checkpoint")
