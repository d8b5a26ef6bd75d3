"""What a user sees while runs go on: a live table in a terminal, one plain line per event anywhere else."""

import time
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table

from dpobench.artifacts.records import Status
from dpobench.experiment import studies
from dpobench.sweep.events import Event, PartBegun, RunEnded, StepTaken
from dpobench.training.run import Run


class Display:
    """Shows the progress of runs; drawn by the parent process only.

    Args:
        runs: all runs of the plan, by id.
        console: where to draw.
        ended: status of runs that were there already.
    """

    def __init__(self, runs: Mapping[str, Run], console: Console, ended: Mapping[str, Status]) -> None:
        self.runs, self.console, self.ended = runs, console, dict(ended)
        self.steps: dict[str, StepTaken] = {}
        self.parts: dict[str, str] = {}
        self.begun = time.monotonic()
        self.done_here = 0
        self.live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None

    def __enter__(self) -> "Display":
        if self.live:
            self.live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self.live.__exit__(kind, value, trace)

    def __call__(self, event: Event) -> None:
        """Take in one event of a worker."""
        match event:
            case RunEnded(run, status, reason):
                self.parts.pop(run, None)
                self.steps.pop(run, None)
                self.ended[run] = status
                self.done_here += 1
                place, because = f"[{len(self.ended)}/{len(self.runs)}]", f": {reason}" if reason else ""
                line = f"{place} {describe(self.runs[run])}: {status}{because}{self._remaining()}"
                self.console.print(line, highlight=False, markup=False)
            case PartBegun(run, part):
                self.parts[run] = part
            case StepTaken():
                self.steps[event.run] = event
                self.parts[event.run] = "training"
        if self.live:
            self.live.update(self._table())

    def _remaining(self) -> str:
        left = len(self.runs) - len(self.ended)
        if not left or not self.done_here:
            return ""
        seconds = (time.monotonic() - self.begun) / self.done_here * left
        return f" (about {seconds / 60:.0f} min left)" if seconds >= 90 else f" (about {seconds:.0f} s left)"

    def _table(self) -> Table:
        table = Table(box=None, header_style="bold")
        for title in ("run", "step", "loss", "accuracy", "margin", "tokens/s", ""):
            table.add_column(title, justify="left" if title in ("run", "") else "right")
        for run, part in self.parts.items():
            step = self.steps.get(run)
            cells = [""] * 5
            if step is not None:
                numbers = [f"{value:.3g}" for value in (step.loss, step.accuracy, step.margin)]
                cells = [f"{step.step + 1}/{step.steps}", *numbers, f"{step.tokens_per_s:,.0f}"]
            table.add_row(describe(self.runs[run]), *cells, part)
        return table


def describe(run: Run) -> str:
    """A run in a few words: variant, hyper-parameters, seed, what a study changed."""
    params = " ".join(
        f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}" for name, value in run.params.items()
    )
    return f"{run.variant} {params} lr={run.learning_rate:g} seed={run.seed} {studies.describe(run.condition)}".rstrip()
