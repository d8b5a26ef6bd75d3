"""One run, from nothing to a sealed folder: train, publish, score, seal. Done twice, it does only what is missing."""

import os
import shutil
import time
import traceback
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from dpobench.artifacts import provenance, scores
from dpobench.artifacts.files import MANIFEST, building, publish, seal, sealed, verify
from dpobench.artifacts.records import CountsRecord, RunRecord, SamplesRecord, Status
from dpobench.data.perturb import apply_condition
from dpobench.data.tokens import TokenPair, read_pairs
from dpobench.errors import Diverged, DpobenchError
from dpobench.evaluation import judge_cache
from dpobench.evaluation.plan import ScoringPlan, scoring_plan
from dpobench.evaluation.score import score
from dpobench.evaluation.settings import Evaluation
from dpobench.experiment.plugin_files import register
from dpobench.losses.registry import variants
from dpobench.models.checkpoint import Checkpoint, model_hash
from dpobench.sweep.collectives import agreed
from dpobench.sweep.events import PartBegun, Report, StepTaken
from dpobench.sweep.inputs import Inputs
from dpobench.sweep.prepare import need_folders
from dpobench.sweep.rounds import Round, write_round
from dpobench.training.accelerate import Accelerator, accelerator_for
from dpobench.training.log import LogRow
from dpobench.training.reference import PAIRS, with_needs
from dpobench.training.run import Run
from dpobench.training.state import Saving
from dpobench.training.train import Trained, train

_TRAINED = ("done", "unscored")
# Behind the name of a part of scoring that was done for checkpoints within the training.
WITHIN = ", checkpoints within"


class Job(BaseModel):
    """All a worker needs to do one run; plain data, so that it travels between processes.

    Args:
        run: what to train.
        out: the experiment's folder.
        model: folder of the reference that every checkpoint is scored against; the start policy, but in a later round.
        shared: folder of training tokens and reference log-probabilities.
        needs: folders of what else was prepared for this run's loss.
        heldout: folder of the held-out inputs.
        evaluation: how to score.
        plugins: files to register first.
        device: "cpu" or "cuda".
        data_hash: content key of the training pairs.
        model_hash: content key of the start policy.
        scored_as: content key of all that decides a score besides the checkpoint.
        save_every: seconds between resumable states of a long training.
        cache: where judges' replies are kept between experiments.
        predecessor: of a later round: id of the run whose policy answers, and from which this one starts.
        prompts: of a later round: folder of the training prompts.
        answers: of a later round: how many the policy gives to each prompt.
    """

    model_config = ConfigDict(frozen=True)
    run: Run
    out: Path
    model: Path
    shared: Path
    needs: dict[str, Path] = {}
    heldout: Path
    evaluation: Evaluation
    plugins: tuple[str, ...] = ()
    device: str = "cpu"
    data_hash: str = ""
    model_hash: str = ""
    scored_as: str = ""
    save_every: float = 600.0
    cache: Path | None = None
    predecessor: str = ""
    prompts: Path | None = None
    answers: int = 2

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.out / "runs" / self.run.id

    @property
    def start(self) -> Path:
        """Folder of the start policy."""
        return self.out / "runs" / self.predecessor / "checkpoint" if self.predecessor else self.model


def keep_replies(cache: Path, out: Path) -> None:
    """Choose where this process keeps what judges reply; what they cost is put on the experiment's account."""
    judge_cache.use(cache / "replies.sqlite", account=str(out.resolve()))


@lru_cache(maxsize=2)
def _read(folder: Path) -> list[TokenPair]:
    return read_pairs(folder / PAIRS)


@lru_cache(maxsize=2)
def _completed(folder: Path, needs: tuple[tuple[str, Path], ...]) -> list[TokenPair]:
    return with_needs(_read(folder), dict(needs))


def training_pairs(job: Job) -> tuple[list[TokenPair], dict[str, int]]:
    """The pairs a run is trained on, and how many there are and how many of them are flipped."""
    pairs = _completed(job.shared, tuple(sorted(job.needs.items())))
    return apply_condition(pairs, job.run.condition, job.run.seed)


def is_done(job: Job) -> bool:
    """Whether the run's folder is sealed, whole, and scored as the experiment wants it now."""
    if not sealed(job.folder):
        return False
    verify(job.folder, hashes=False)
    record = RunRecord.read(job.folder)
    return record.status == "diverged" or record.scored_as == job.scored_as


def execute(job: Job, report: Report = lambda event: None) -> Status:
    """Do one run.

    Returns: its status. A failure is written down with its traceback, not raised.
    """
    register(job.plugins)
    if job.cache is not None:
        keep_replies(job.cache, job.out)
    accelerator = accelerator_for(job.device, job.run.recipe.precision)
    if agreed(accelerator, is_done(job)):
        return status_of(job.folder)
    try:
        if not agreed(accelerator, is_trained(job)):
            if job.predecessor:
                job = _next_round(job, accelerator, report)
            _train(job, accelerator, report)
        if accelerator.is_main_process and status_of(job.folder) in _TRAINED:
            _score(job, str(accelerator.device), report)
    except Exception as error:
        if accelerator.num_processes > 1:
            # The other processes wait in a collective; only the launcher can end them all.
            raise
        if accelerator.is_main_process:
            record_failure(job, f"{type(error).__name__}: {error}", traceback.format_exc())
    accelerator.wait_for_everyone()
    return status_of(job.folder)


def _next_round(job: Job, accelerator: Accelerator, report: Report) -> Job:
    """Make the training pairs of a later round from the policy of the one before.

    Raises:
        DpobenchError: there is no such policy.
    """
    before = agreed(accelerator, status_of(job.start.parent))
    if before not in _TRAINED:
        raise DpobenchError(f"the run before it, {job.predecessor}, is {before}: there is no policy to go on from")
    number = job.run.condition.round
    assert job.prompts is not None
    assert number is not None
    this_round = Round(
        number, job.start, job.prompts, job.answers, job.evaluation, job.run.recipe, job.run.seed, job.device
    )
    planned = scoring_plan(job.evaluation, has_pairs=True, heldout=job.heldout.name)

    def say(line: str) -> None:
        report(PartBegun(job.run.id, line))

    def needs() -> dict[str, Path]:
        inputs = Inputs(job.start, "", _read(job.shared), (), (), job.evaluation, {})
        names = variants.get(job.run.variant).needs
        return need_folders(inputs, job.shared, names, job.run.recipe, job.device, say)

    if accelerator.is_main_process:
        write_round(job.shared, this_round, planned, say)
        needs()
    accelerator.wait_for_everyone()
    return job.model_copy(update={"needs": needs()})


def is_trained(job: Job) -> bool:
    """Whether the training is whole, with every checkpoint within it that the experiment wants now."""
    status = status_of(job.folder)
    if status not in _TRAINED:
        return status == "diverged"
    wanted = scores.spread(job.evaluation.checkpoints, RunRecord.read(job.folder).steps)
    return all((scores.within(job.folder, step) / "checkpoint").is_dir() for step in wanted)


def status_of(folder: Path) -> Status:
    """What became of the run in a folder; "missing" where there is none."""
    return RunRecord.read(folder).status if RunRecord.lies_in(folder) else "missing"


def record_failure(job: Job, reason: str, trace: str | None = None) -> Status:
    """Write a failed run's folder: it stands in the report with its reason, and is tried again next time.

    Returns: its status.
    """
    (job.folder / MANIFEST).unlink(missing_ok=True)
    try:
        trained = status_of(job.folder) in _TRAINED
    except DpobenchError:  # its record is damaged: what failed first is what a reader needs
        trained = False
    if trained:
        # Training is whole; only its scoring failed. The checkpoint stays.
        record = RunRecord.read(job.folder).updated(status="unscored", reason=reason, traceback=trace)
        record.write(job.folder)
        return "unscored"
    with building(job.folder) as part:
        _record(job, "failed", reason, Trained(), {}).updated(traceback=trace).write(part)
    return "failed"


def _record(job: Job, status: Status, reason: str | None, trained: Trained, counts: Mapping[str, int]) -> RunRecord:
    """The record of a training that has ended, one way or another."""
    made = provenance.environment(
        job.device, job.run.recipe.precision, data_hash=job.data_hash, model_hash=job.model_hash
    )
    later = status != "failed" and job.predecessor and CountsRecord.lies_in(job.shared)
    return RunRecord(
        **dict(job.run.describe()),
        status=status,
        reason=reason,
        predecessor=job.predecessor or None,
        checks=trained.checks,
        seconds={"train": round(trained.seconds, 3)},
        tokens=trained.tokens,
        steps=trained.steps,
        layout=trained.layout,
        cost=trained.cost,
        flags=tuple(trained.flags),
        provenance=made,
        pairs=counts.get("pairs"),
        flipped=counts.get("flipped"),
        answered=CountsRecord.read(job.shared).counts if later else None,
    )


def _train(job: Job, accelerator: Accelerator, report: Report) -> None:
    """Train into a folder that appears whole, or not at all."""
    # What is trained and scored stays until the new folder takes its place.
    if accelerator.is_main_process and job.folder.exists() and status_of(job.folder) not in _TRAINED:
        shutil.rmtree(job.folder)
    bound = variants.get(job.run.variant).bind(**job.run.params)
    pairs, counts = training_pairs(job)
    steps = job.run.recipe.steps(len(pairs))
    saving = Saving(job.out / "states" / job.run.id, job.save_every, scores.spread(job.evaluation.checkpoints, steps))
    part = job.folder.with_name(f".{job.run.id}.{os.environ.get('MASTER_PORT', os.getpid())}.part")
    if accelerator.is_main_process:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
    status: Status = "done"
    reason, trained = None, Trained()

    def progress(row: LogRow) -> None:
        report(StepTaken(job.run.id, row.step, steps, row.loss, row.accuracy, row.margin, row.tokens, row.tokens_per_s))

    try:
        trained = train(
            job.run, bound, pairs, job.start, part, accelerator=accelerator, saving=saving, progress=progress
        )
    except Diverged as error:
        status, reason = "diverged", str(error)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    if accelerator.is_main_process:
        _record(job, status, reason, trained, counts).write(part)
        if status == "diverged":
            seal(part)
        else:
            for step in saving.within:
                scores.within(part, step).parent.mkdir(exist_ok=True)
                (saving.checkpoints / str(step)).rename(scores.within(part, step))
            _take_over_scores(job.folder, part)
        publish(part, job.folder)
        _remove_state(job)
    # Scoring loads policy and reference; the trained copy and its optimizer must not take memory then.
    accelerator.free_memory()
    accelerator.wait_for_everyone()


def _take_over_scores(old: Path, new: Path) -> None:
    """Keep the samples and scores of a training that ended with the same weights."""
    if not (old / "checkpoint").is_dir() or model_hash(old / "checkpoint") != model_hash(new / "checkpoint"):
        return
    for file in [*old.glob("*.parquet"), old / SamplesRecord.FILE]:
        if file.is_file():
            shutil.copy2(file, new / file.name)
    if (old / "scores").is_dir():
        shutil.copytree(old / "scores", new / "scores")


def _remove_state(job: Job) -> None:
    """Remove what a training left on its way: it is whole now."""
    saving = Saving(job.out / "states" / job.run.id)
    shutil.rmtree(saving.folder, ignore_errors=True)
    shutil.rmtree(saving.checkpoints, ignore_errors=True)


class _Stopwatch:
    """Wall time of the parts of a scoring, in seconds; a part ends where the next one begins."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._part, self._since = "", time.monotonic()

    def begin(self, part: str) -> None:
        now = time.monotonic()
        if self._part:
            self.seconds[self._part] = self.seconds.get(self._part, 0.0) + now - self._since
        self._part, self._since = part, now

    def end(self) -> None:
        self.begin("")


def _score(job: Job, device: str, report: Report) -> None:
    """Score the checkpoint, and those within its training, and seal the folder."""
    began, watch = time.monotonic(), _Stopwatch()
    _remove_state(job)
    planned = scoring_plan(
        job.evaluation, has_pairs=(job.heldout / "heldout.parquet").is_file(), heldout=job.heldout.name
    )
    (job.folder / MANIFEST).unlink(missing_ok=True)

    def score_checkpoint(folder: Path, name: str, planned: ScoringPlan, suffix: str = "") -> None:
        def progress(part: str) -> None:
            watch.begin(part + suffix)
            report(PartBegun(job.run.id, part + suffix))

        # Made anew each time: a checkpoint holds its models for as long as it is held.
        run = job.run.describe().model_dump() | {"id": name}
        policy = Checkpoint(folder / "checkpoint", job.model, device, run=run, reference_hash=job.model_hash)
        score(policy, folder, job.heldout, job.evaluation, planned, seed=job.run.seed, progress=progress)

    score_checkpoint(job.folder, job.run.id, planned)
    record = RunRecord.read(job.folder)
    for step in scores.spread(job.evaluation.checkpoints, record.steps):
        folder, name = scores.within(job.folder, step), scores.step_of(job.run.id, step)
        score_checkpoint(folder, name, planned.within, WITHIN)
    watch.end()
    seconds = record.seconds | {name: round(value, 3) for name, value in watch.seconds.items()}
    sampling = sum(value for name, value in watch.seconds.items() if name.startswith("sampling"))
    seconds["evaluate"] = round(time.monotonic() - began - sampling, 3)
    done = record.updated(status="done", reason=None, traceback=None, seconds=seconds, scored_as=job.scored_as)
    done.write(job.folder)
    seal(job.folder)
