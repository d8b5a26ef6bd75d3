"""Operating points: every cell of the grid at the end of its trainings, and at the checkpoints within them that were scored."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dpobench.analysis.findings import Configuration, Findings
from dpobench.artifacts.scores import spread, step_of


@dataclass(frozen=True)
class Point:
    """One cell at one step.

    Args:
        cell: with all its seeds.
        step: number of steps taken; None at the end.
        steps: those of a whole training.
        ids: names of its scores, by seed.
        findings: where they are read.
    """

    cell: Configuration
    step: int | None
    steps: int
    ids: Sequence[str]
    findings: Findings

    @property
    def label(self) -> str:
        """Short name within the variant."""
        name = self.findings.label(self.cell)
        return name if self.step is None else f"{name} after {self.step} of {self.steps} steps".strip()


def points(f: Findings) -> list[Point]:
    """Every finished cell, each after its checkpoints in the order of the steps."""
    every: list[Point] = []
    for cell in f.configurations:
        if cell.done:
            every += [*earlier(f, cell), end(f, cell)]
    return every


def end(f: Findings, cell: Configuration) -> Point:
    """A cell at the end of its trainings."""
    return Point(cell, None, _steps(cell), cell.ids, f)


def earlier(f: Findings, cell: Configuration) -> list[Point]:
    """A cell at the checkpoints within its trainings that were scored for all of its seeds."""
    scored = f.results.within
    if scored is None or not cell.done:
        return []
    within = f.once("within", lambda: replace(f, results=scored, _computed={}))
    there = f.once("scored within", lambda: set(scored.scores["run"]))
    count, steps = f.results.experiment.evaluation.checkpoints, _steps(cell)
    names = {step: [step_of(run, step) for run in cell.ids] for step in spread(count, steps)}
    return [Point(cell, step, steps, ids, within) for step, ids in names.items() if there.issuperset(ids)]


def _steps(cell: Configuration) -> int:
    return cell.done[0].record.steps
