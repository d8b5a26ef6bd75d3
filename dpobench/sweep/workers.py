"""Warm worker processes: each takes one run after another; one that dies costs the run it held, nothing else."""

import contextlib
import ctypes
import gc
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Literal

from dpobench.artifacts.records import Status
from dpobench.evaluation.registry import evaluators, judges
from dpobench.sweep.allocator import keep_pages
from dpobench.sweep.events import Event, Report, RunEnded
from dpobench.sweep.job import Job, execute, is_done, record_failure, status_of

_PR_SET_PDEATHSIG = 1


def _work(pipe: Connection, threads: int, device: str | None, parent: int) -> None:
    """Body of a worker: receive jobs, send events, until the pipe closes."""
    if sys.platform == "linux":
        # Without this a killed parent would leave workers training for nobody.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    quiet(threads)
    while (text := _receive(pipe)) is not None:
        job = Job.model_validate_json(text)
        status = execute(job, pipe.send)
        pipe.send(RunEnded(job.run.id, status))


def _receive(pipe: Connection) -> str | None:
    try:
        text: str | None = pipe.recv()
    except EOFError:
        return None
    return text


def quiet(threads: int) -> None:
    """Set the number of threads, keep freed memory for the next step, and silence the libraries' progress bars."""
    import torch
    import transformers

    keep_pages()
    torch.set_num_threads(threads)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()


def import_all() -> None:
    """Import what every run needs, evaluators and judges included."""
    import transformers.modeling_utils
    import transformers.models.auto.modeling_auto  # noqa: F401

    for shelf in (evaluators, judges):
        for name in shelf.names():
            shelf.get(name)
    # What was imported stays: a collection after each run would look through all of it again.
    gc.collect()
    gc.freeze()


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    job: Job | None = None


@dataclass
class Workers:
    """A fixed number of worker processes.

    Args:
        count: how many.
        threads: of each; part of what a result depends on, so it never follows the number of runs left.
        devices: one CUDA device each, or empty on a CPU.
    """

    count: int
    threads: int
    devices: Sequence[str] = ()
    _members: list[_Worker] = field(default_factory=list)

    def __enter__(self) -> "Workers":
        """Start the workers.

        With one thread each they are forked from a parent that has imported everything, so that the slow imports are paid
        once. A fork tears a pool of several threads, and CUDA: such workers, and replacements, are spawned.
        """
        quiet(self.threads)
        method: Literal["fork", "spawn"] = "spawn" if self.devices or self.threads > 1 else "fork"
        if method == "fork":
            import_all()
        self._members = [self._start(index, method) for index in range(self.count)]
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._members:
            if worker.job is not None:
                worker.process.terminate()
            # A forked worker holds copies of both ends of its pipe, so that closing ours alone would not end it.
            with contextlib.suppress(BrokenPipeError):
                worker.pipe.send(None)
            worker.pipe.close()
        for worker in self._members:
            worker.process.join(timeout=10)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()

    def _start(self, index: int, method: Literal["fork", "spawn"]) -> _Worker:
        context = multiprocessing.get_context("fork") if method == "fork" else multiprocessing.get_context("spawn")
        mine, theirs = context.Pipe()
        device = self.devices[index % len(self.devices)] if self.devices else None
        with _environment(OMP_NUM_THREADS=str(self.threads), MKL_NUM_THREADS=str(self.threads)):
            process = context.Process(target=_work, args=(theirs, self.threads, device, os.getpid()), daemon=True)
            process.start()
        theirs.close()
        return _Worker(process, mine)

    def run(self, jobs: Sequence[Job], report: Report) -> dict[str, Status]:
        """Do all jobs.

        Args:
            jobs: what to do, in this order.
            report: called with every event.

        Returns: status of each run, by id.
        """
        waiting, ended = list(jobs), dict[str, Status]()
        while len(ended) < len(jobs):
            for worker in self._members:
                if worker.job is None and waiting:
                    worker.job = waiting.pop(0)
                    with contextlib.suppress(BrokenPipeError):
                        worker.pipe.send(worker.job.model_dump_json())
            for number, event in list(self._events()):
                report(event)
                if isinstance(event, RunEnded):
                    ended[event.run] = event.status
                    self._members[number].job = None
        return ended

    def _events(self) -> Iterator[tuple[int, Event]]:
        """Wait for something to happen: events of the living, a `RunEnded` for every run whose worker died."""
        ready = wait([end for worker in self._members for end in (worker.pipe, worker.process.sentinel)], timeout=1.0)
        for number, worker in enumerate(self._members):
            if worker.pipe in ready:
                try:
                    yield number, worker.pipe.recv()
                    continue
                except (EOFError, OSError):
                    worker.process.join(timeout=10)
            if not worker.process.is_alive():
                yield from self._bury(number, worker)

    def _bury(self, number: int, worker: _Worker) -> Iterator[tuple[int, Event]]:
        """Replace a dead worker, and write down what killed the run it held."""
        code, job = worker.process.exitcode or 0, worker.job
        worker.pipe.close()
        self._members[number] = self._start(number, "spawn")
        if job is not None:
            likely = " (likely out of memory)" if code == -signal.SIGKILL else ""
            reason = f"killed by signal {-code}{likely}" if code < 0 else f"its process ended with status {code}"
            # It may have died after its last write and before it could report that.
            if is_done(job):
                yield number, RunEnded(job.run.id, status_of(job.folder))
            else:
                yield number, RunEnded(job.run.id, record_failure(job, reason), reason)


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
