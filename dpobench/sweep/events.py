"""What a worker reports while it does a run."""

from collections.abc import Callable
from dataclasses import dataclass

from dpobench.artifacts.records import Status


@dataclass(frozen=True)
class StepTaken:
    """One optimizer step.

    Args:
        run: id of the run.
        step: its number, from 0.
        steps: of the whole training.
        loss: mean over the batch.
        accuracy: share of the pairs with a positive margin.
        margin: mean, nats.
        tokens: computed in this step.
        tokens_per_s: its speed.
    """

    run: str
    step: int
    steps: int
    loss: float
    accuracy: float
    margin: float
    tokens: int
    tokens_per_s: float


@dataclass(frozen=True)
class PartBegun:
    """A part of scoring, or of preparing a later round, has begun.

    Args:
        run: id of the run.
        part: its name.
    """

    run: str
    part: str


@dataclass(frozen=True)
class RunEnded:
    """A run has ended.

    Args:
        run: its id.
        status: what became of it.
        reason: of a run that a dead worker left.
    """

    run: str
    status: Status
    reason: str | None = None


Event = StepTaken | PartBegun | RunEnded
Report = Callable[[Event], None]
