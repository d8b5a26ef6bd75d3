"""What the decorators of evaluators and judges declare."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dpobench.plugins.plugin import Plugin, Spec

if TYPE_CHECKING:
    from dpobench.artifacts.scores import Metric


@dataclass(frozen=True, kw_only=True)
class EvaluatorSpec(Spec):
    """What an evaluator declares; `dpobench.evaluator` explains each point."""

    metrics: "Mapping[str, Metric]"
    needs: tuple[str, ...] = ()
    reference_only: bool = False
    within: bool = False
    at_reference: Mapping[str, float] = field(default_factory=dict)

    @property
    def positional(self) -> int:
        """Checkpoint and held-out inputs."""
        return 2


class Evaluator(Plugin[EvaluatorSpec]):
    """A registered evaluator."""


@dataclass(frozen=True, kw_only=True)
class JudgeSpec(Spec):
    """What a judge declares; `dpobench.judge` explains each point."""

    pointwise: bool
    check: Callable[..., None] | None = None
    estimate: Callable[..., object] | None = None
    deterministic: bool = True

    @property
    def positional(self) -> int:
        """Prompts and completions, or prompts and two completions each."""
        return 2 if self.pointwise else 3


class Judge(Plugin[JudgeSpec]):
    """A registered judge."""
