"""What a user sees while runs go on: a live table in a terminal, one plain line per event anywhere else."""

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from dpobench.experiment import studies
from dpobench.training.run import Run


class Display:
    """Shows the progress of runs; drawn by the parent process only.

    Args:
        runs: all runs of the plan, by id.
        console: where to draw.
        ended: status of runs that were there already.
    """

    def __init__(self, runs: Mapping[str, Run], console: Console, ended: Mapping[str, str]) -> None:
        self.runs, self.console, self.ended = runs, console, dict(ended)
        self.latest: dict[str, dict[str, Any]] = {}
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

    def __call__(self, event: dict[str, Any]) -> None:
        """Take in one event of a worker."""
        run = event["run"]
        if event["event"] == "end":
            self.latest.pop(run, None)
            self.ended[run] = event["status"]
            self.done_here += 1
            self.console.print(self._ending(run, event), highlight=False, markup=False)
        else:
            self.latest[run] = self.latest.get(run, {}) | event
        if self.live:
            self.live.update(self._table())

    def _ending(self, run: str, event: Mapping[str, Any]) -> str:
        where = f"[{len(self.ended)}/{len(self.runs)}]"
        reason = f": {event['reason']}" if event.get("reason") else ""
        return f"{where} {describe(self.runs[run])}: {event['status']}{reason}{self._remaining()}"

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
        for run, event in self.latest.items():
            step = f"{event['step'] + 1}/{event['steps']}" if "step" in event else ""
            numbers = [f"{event[name]:.3g}" if name in event else "" for name in ("loss", "accuracy", "margin")]
            speed = f"{event['tokens_per_s']:,.0f}" if "tokens_per_s" in event else ""
            table.add_row(describe(self.runs[run]), step, *numbers, speed, event.get("part", "training"))
        return table


def describe(run: Run) -> str:
    """A run in a few words: variant, hyper-parameters, seed, what a study changed."""
    params = " ".join(
        f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}" for name, value in run.params.items()
    )
    return f"{run.variant} {params} lr={run.learning_rate:g} seed={run.seed} {studies.describe(run.condition)}".rstrip()
