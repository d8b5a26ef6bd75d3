"""The command line in processes that are forked from one that has imported everything.

A fresh `python -m dpobench` spends eight seconds of a core on imports. The parent here spends them once for all tests of a worker, and
each call is a child of its own: other arguments, environment, folder and exit status, and nothing of it stays. Two tests start real
processes all the same: what only they can show is that the numbers depend on nothing that a fork shares, such as the seed of hashes.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Call:
    """A command under way, and what it has written so far."""

    commands: "Commands"
    process: int
    written: Path

    def kill(self) -> None:
        os.kill(self.process, signal.SIGKILL)

    @property
    def is_running(self) -> bool:
        return self.commands.request(running=self.process)["running"]

    def wait(self) -> subprocess.CompletedProcess[str]:
        status = self.commands.request(wait=self.process)["status"]
        stdout, stderr = ((self.written / name).read_text(encoding="utf-8") for name in ("stdout", "stderr"))
        return subprocess.CompletedProcess([], status, stdout, stderr)


class Commands:
    """Starts commands, each as a child of one process that has imported everything."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._parent = subprocess.Popen([sys.executable, "-m", "tests.commands"], cwd=ROOT, text=True, **pipes)

    def close(self) -> None:
        """End the parent, which ends what it has started."""
        self._parent.stdin.close()
        self._parent.stdout.close()
        self._parent.wait()

    def request(self, **fields: object) -> dict:
        self._parent.stdin.write(json.dumps(fields) + "\n")
        self._parent.stdin.flush()
        return json.loads(self._parent.stdout.readline())

    def start(self, *arguments: object, cwd: Path | None = None, **environment: str) -> Call:
        """Begin a command.

        Args:
            arguments: of `dpobench`.
            cwd: where it runs; as `python -m` does, it is the first place that modules are imported from.
            environment: variables, in addition to those of this process.
        """
        written = Path(tempfile.mkdtemp(dir=self._folder))
        process = self.request(
            arguments=[str(argument) for argument in arguments],
            cwd=str(cwd or ROOT),
            environment=dict(os.environ) | environment,
            written=str(written),
        )["process"]
        return Call(self, process, written)

    def __call__(self, *arguments: object, cwd: Path | None = None, **environment: str):
        """Run a command to its end."""
        return self.start(*arguments, cwd=cwd, **environment).wait()


@contextlib.contextmanager
def commands(folder: Path) -> Iterator[Commands]:
    """Commands whose output is kept below this folder."""
    started = Commands(folder)
    try:
        yield started
    finally:
        started.close()


def import_everything() -> None:
    import importlib

    from dpobench.sweep.workers import import_all

    for file in sorted((ROOT / "dpobench").rglob("*.py")):
        if file.stem not in ("__init__", "__main__"):
            importlib.import_module(".".join(file.relative_to(ROOT).with_suffix("").parts))
    import_all()


def serve() -> None:
    """Fork a child for each request that holds arguments; answer questions about those that run."""
    # What a child prints goes elsewhere, so that the answers here are never mixed with it.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    requests = os.fdopen(os.dup(0), encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    import_everything()
    running: set[int] = set()
    statuses: dict[int, int] = {}
    while line := requests.readline():
        match json.loads(line):
            case {"running": process}:
                _reap(process, running, statuses, os.WNOHANG)
                answer = {"running": process in running}
            case {"wait": process}:
                _reap(process, running, statuses, 0)
                answer = {"status": statuses[process]}
            case request:
                if (process := os.fork()) == 0:
                    _become(request)
                running.add(process)
                answer = {"process": process}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    for process in running:
        os.kill(process, signal.SIGKILL)


def _reap(process: int, running: set[int], statuses: dict[int, int], options: int) -> None:
    if process in running:
        ended, status = os.waitpid(process, options)
        if ended:
            running.remove(process)
            statuses[process] = os.waitstatus_to_exitcode(status)


def _become(request: dict) -> None:
    """Be `python -m dpobench` with these arguments; it ends the process."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(Path(request["written"], name), os.O_WRONLY | os.O_CREAT, 0o600), number)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["cwd"])
    sys.path.insert(0, request["cwd"])
    sys.argv = ["dpobench", *request["arguments"]]
    from dpobench.cli.commands import main

    main(request["arguments"])


if __name__ == "__main__":
    serve()
