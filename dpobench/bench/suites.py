"""What `dpobench bench` measures: models in a precision, each on preference data of several kinds."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from dpobench.bench.workloads import HALF_BILLION, LARGER, SEVEN_BILLION, SMALL, WORKLOADS, ModelShape, Workload


@dataclass(frozen=True)
class StepSpec:
    """One optimizer step.

    Args:
        workload: lengths of its pairs.
        shape: of the model.
        precision: "float32" or "bf16".
        pairs: number of pairs.
        device: "cpu" or "cuda".
    """

    workload: Workload
    shape: ModelShape = SMALL
    precision: str = "float32"
    pairs: int = 16
    device: str = "cpu"


@dataclass(frozen=True)
class Case:
    """One model in one precision, and what it is measured on.

    Args:
        shape: of the model.
        precision: "float32" or "bf16".
        workloads: lengths of the pairs, one row of the table each.
        batches: TRL's batches per device; they divide the pairs of a step and contain 1 and 8.
    """

    shape: ModelShape
    precision: str
    workloads: tuple[Workload, ...]
    batches: tuple[int, ...] = (1, 8)


@dataclass(frozen=True)
class Suite:
    """All cases, and how often each is measured.

    Args:
        pairs: of one step.
        repeats: timed steps of each side, after the one that is compared.
        cases: what is measured.
        device: "cpu" or "cuda".
    """

    pairs: int
    repeats: int
    cases: tuple[Case, ...]
    device: str = "cpu"

    def steps(self) -> Iterator[tuple[StepSpec, tuple[int, ...]]]:
        """Every step to measure, with TRL's batches per device."""
        for case in self.cases:
            for workload in case.workloads:
                yield StepSpec(workload, case.shape, case.precision, self.pairs, self.device), case.batches

    def on(self, workloads: tuple[Workload, ...]) -> "Suite":
        """The same suite with other workloads in every case."""
        return replace(self, cases=tuple(replace(case, workloads=workloads) for case in self.cases))


FULL = Suite(
    8,
    5,
    (
        Case(SMALL, "float32", WORKLOADS, (1, 4, 8)),
        Case(SMALL, "bf16", WORKLOADS),
        Case(LARGER, "float32", WORKLOADS[:1]),
        Case(LARGER, "bf16", WORKLOADS[:1]),
    ),
)
QUICK = Suite(8, 3, (Case(SMALL, "float32", WORKLOADS),))
GPU = Suite(
    16,
    5,
    (
        Case(HALF_BILLION, "bf16", WORKLOADS, (1, 4, 8, 16)),
        Case(SEVEN_BILLION, "bf16", WORKLOADS),
    ),
    "cuda",
)
