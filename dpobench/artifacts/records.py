"""Records: what the folder of an experiment holds as JSON. Each file has one type, and is read and written by that type alone.

    experiment.json                    ExperimentRecord    the merged settings
    plan.json                          PlanRecord          every run, and what the runs share
    runs/<run>/run.json                RunRecord           one training: its settings, its outcome, where it came from
    runs/<run>/samples.json            SamplesRecord       what the answers were drawn for
    runs/<run>/scores/<evaluator>.json ScoresRecord        what the metrics mean (in `dpobench.artifacts.scores`)
    reference/<key>/provenance.json    ProvenanceRecord    where shared inputs came from
    reference/<key>/samples.json, pool.json, counts.json, golds.json
    tournament/note.json               TournamentRecord    which selected checkpoints were compared, and by whom

Every record has a format. There is no migration before 1.0: a file of another format is refused with both numbers named.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, JsonValue, SerializerFunctionWrapHandler, ValidationError, model_serializer

from dpobench.artifacts.files import FORMAT, read_json, refuse_format, write_json
from dpobench.errors import Damaged

# Hyper-parameters or settings by name; only the plugin that declares them knows their types.
Values = dict[str, JsonValue]
# What a table shows of a value.
Cell = str | float | int | None
Status = Literal["done", "unscored", "diverged", "failed", "missing"]


class Part(BaseModel):
    """Base of everything in a record: frozen, and without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Section(BaseModel):
    """Base of recorded settings: declares those that results are read with, and carries the others along unread."""

    model_config = ConfigDict(extra="allow", frozen=True)


class Record(Part):
    """Base of every file of JSON.

    Args:
        format: of the file; a reader knows one.
    """

    FILE: ClassVar[str] = ""
    format: int = FORMAT

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the record of a folder.

        Raises:
            UserError: it was written in another format.
            Damaged: it is no such record.
        """
        return cls.read_file(folder / cls.FILE)

    @classmethod
    def read_file(cls, path: Path) -> Self:
        """The same for a file by its own name."""
        content = read_json(path)
        refuse_format(path.parent, content)
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise Damaged(
                f"{path} is damaged ({where}: {first['msg'].lower()}); remove it and run again, only this part is made anew"
            ) from error

    @classmethod
    def lies_in(cls, folder: Path) -> bool:
        """Whether a folder holds this record."""
        return (folder / cls.FILE).is_file()

    def write(self, folder: Path) -> None:
        """Write the record into a folder, whole or not at all."""
        self.write_file(folder / self.FILE)

    def write_file(self, path: Path) -> None:
        """The same for a file by its own name."""
        write_json(path, {"format": self.format} | self.model_dump(mode="json"))


class Condition(Part):
    """What a study changes for a run; nothing in the main experiment.

    Args:
        label_noise: share of the training labels that are flipped.
        train_size: number of training pairs.
        reference_quality: share of the reference's own training.
        round: number of a later round.

    Example:
        >>> Condition(label_noise=0.3).changed
        {'label_noise': 0.3}
    """

    label_noise: float | None = None
    train_size: int | None = None
    reference_quality: float | None = None
    round: int | None = None

    @model_serializer(mode="wrap")
    def _without_none(self, handler: SerializerFunctionWrapHandler) -> dict[str, float | int]:
        return {name: value for name, value in handler(self).items() if value is not None}

    @property
    def changed(self) -> dict[str, float | int]:
        """The values that differ from the main experiment, by the name of the study."""
        return self.model_dump()

    @property
    def is_main(self) -> bool:
        """Whether this is the main experiment."""
        return not self.changed


class RecipeRecord(Section):
    """How a run was trained; of the recipe, what results are read with.

    Args:
        learning_rate: peak.
        batch: pairs in one optimizer step.
        clip: largest gradient norm.
        reference_every: steps after which the reference moved; 0 where it kept still.
        reference_mix: share of the policy in the moved reference.
    """

    learning_rate: float | None = None
    batch: int = 1
    clip: float | None = None
    reference_every: int = 0
    reference_mix: float = 1.0


class PlannedRun(Part):
    """One run as the plan names it.

    Args:
        id: variant and hash of all that decides the run; also the name of its folder.
        variant: name of the loss, or of a checkpoint trained elsewhere.
        seed: of sample order and draws.
        params: all hyper-parameters of the loss.
        strength: name of the hyper-parameter that sets the regularisation strength; None where it is not known.
        beta: its value.
        unit: its unit.
        learning_rate: peak; None where it is not known.
        recipe: what all runs share; None where it is not known.
        reference: key of the shared training inputs.
        code: hash of the loss's code.
        condition: what a study changes.
        harness: version of the training harness; None for a checkpoint trained elsewhere.
    """

    id: str
    variant: str
    seed: int
    params: Values = {}
    strength: str | None = None
    beta: Cell = None
    unit: str = ""
    learning_rate: float | None = None
    recipe: RecipeRecord | None = None
    reference: str = ""
    code: str = ""
    condition: Condition = Condition()
    harness: int | None = None


class Provenance(Part):
    """Where a number came from.

    Args:
        dpobench: its version.
        commit: of the checkout; None where it was installed.
        dirty: whether files differ from the commit.
        versions: of the libraries.
        threads: of the process.
        device: "cpu" or "cuda".
        hardware: name of the device.
        cores: of the machine.
        precision: of the arithmetic.
        world_size: number of processes.
        host: operating system.
        model_hash: content key of the model.
        data_hash: content key of the training pairs.
    """

    dpobench: str = ""
    commit: str | None = None
    dirty: bool | None = None
    versions: dict[str, str] = {}
    threads: int = 1
    device: str = "cpu"
    hardware: str = ""
    cores: int | None = None
    precision: str = ""
    world_size: int = 1
    host: str = ""
    model_hash: str = ""
    data_hash: str = ""


class ProvenanceRecord(Record, Provenance):
    """Where the files of a folder of shared inputs came from.

    Args:
        need: name of what was computed, where losses declared it.
    """

    FILE: ClassVar[str] = "provenance.json"
    need: str = ""


class Checks(Part):
    """What was checked before the first step and after the last; nats where not said otherwise.

    Args:
        start_margin: largest margin at step 0, per token.
        start_loss: mean loss at step 0.
        start_declared: what the loss declares it to be; None where it declares nothing.
        reload_max_difference: of the logits of the saved model read again; None where nothing was saved.
    """

    start_margin: float | None = None
    start_loss: float | None = None
    start_declared: float | None = None
    reload_max_difference: float | None = None


class Cost(Part):
    """What a training cost beside its time.

    Args:
        forwards: pairs that a model computed, each time it did.
        backwards: pairs that a gradient went back through.
        peak_bytes: most memory; None where the system does not tell.
    """

    forwards: int
    backwards: int
    peak_bytes: int | None = None


class AnswerCounts(Part):
    """What became of the training prompts that a policy answered before a later round.

    Args:
        prompts: answered.
        equal: with equal answers only.
        ties: whose answers the judge found equally good.
        no_verdict: without a verdict.
        pairs: that came of the others.
    """

    prompts: int
    equal: int
    ties: int
    no_verdict: int
    pairs: int


class CountsRecord(Record):
    """The counts of one later round, beside its pairs."""

    FILE: ClassVar[str] = "counts.json"
    counts: AnswerCounts


class GoldsRecord(Record):
    """Token ids of the data set's best answer to each training prompt that has one, for later rounds."""

    FILE: ClassVar[str] = "golds.json"
    answers: dict[str, list[int]]


class CheckpointSource(Part):
    """Where a checkpoint was entered from that `dpobench evaluate` scored.

    Args:
        folder: of the model or adapter.
        base: folder of the adapter's base; None for a whole model.
        log: of its training; None where it was trained elsewhere.
        trained_with: loss of the run it came from; None where it was trained elsewhere.
        states_probability: whether that loss states a probability.
        baseline: whether it was a baseline there.
        given: what of the data the loss read beside prompts and answers.
    """

    folder: str
    base: str | None = None
    log: str | None = None
    trained_with: str | None = None
    states_probability: bool = False
    baseline: bool = False
    given: tuple[str, ...] = ()


class RunRecord(Record, PlannedRun):
    """One run and what became of it.

    Args:
        status: "done"; "unscored": trained, but scoring failed; "diverged"; "failed"; "missing": planned only, never written.
        reason: why it is not done.
        traceback: of a failure.
        predecessor: of a later round: id of the run it started from.
        checks: of the first and last step.
        seconds: wall time by stage: "train", "evaluate", and the parts of scoring.
        tokens: computed, of all sides.
        steps: of the optimizer.
        layout: how pairs lay in memory.
        cost: passes and memory; None where nothing was trained.
        flags: what a reader should know, in words.
        provenance: None only where nothing was run.
        pairs: training pairs.
        flipped: of these, how many labels a study flipped.
        answered: of a later round: what became of the prompts.
        scored_as: content key of all that decided the scores; None before scoring.
        source: of a checkpoint that was entered and not trained here.
    """

    FILE: ClassVar[str] = "run.json"
    status: Status
    reason: str | None = None
    traceback: str | None = None
    predecessor: str | None = None
    checks: Checks = Checks()
    seconds: dict[str, float] = {}
    tokens: int = 0
    steps: int = 0
    layout: str = ""
    cost: Cost | None = None
    flags: tuple[str, ...] = ()
    provenance: Provenance | None = None
    pairs: int | None = None
    flipped: int | None = None
    answered: AnswerCounts | None = None
    scored_as: str | None = None
    source: CheckpointSource | None = None

    @classmethod
    def missing(cls, planned: PlannedRun) -> Self:
        """The record of a run that is planned and nothing else."""
        return cls(**dict(planned), status="missing", reason="planned, not run yet")

    def updated(self, **fields: object) -> Self:
        """The same record with other values, checked like the first."""
        return type(self).model_validate(dict(self) | fields)


class LeftOut(Part):
    """An evaluator that does not run, and why."""

    evaluator: str
    why: str


class MeasuredReference(Section):
    """How well the embedded base model writes.

    Args:
        steps: of its training.
        held_out_loss: on held-out answers, nats per answer; None where it was not measured.
        floor: the least that any model can have.
    """

    steps: int = 0
    held_out_loss: float | None = None
    floor: float | None = None

    @classmethod
    def of_world(cls, world: Path) -> Self:
        """Of the base model of an embedded default, whose training was whole."""
        content = read_json(world / "world.json")
        return cls(steps=content["settings"]["steps"], **content["measured"])

    @classmethod
    def of_undertrained(cls, folder: Path) -> Self:
        """Of a base model that was trained for a share of the steps."""
        return cls(**read_json(folder / "measured.json"))


class PlannedCondition(Part):
    """What the runs of one condition share.

    Args:
        condition: what is changed.
        reference: name of the folder of the held-out inputs.
        training: name of the folder of the training pairs.
        model_hash: content key of the start policy.
        measured: of the reference, where it is an embedded default.
    """

    condition: Condition
    reference: str
    training: str = ""
    model_hash: str = ""
    measured: MeasuredReference | None = None


class PlanRecord(Record):
    """Every run of an experiment, and what the runs of the main experiment share.

    Args:
        runs: in the order of the report.
        conditions: of studies, with what their runs share.
        baselines: variants that are trained along and are no candidates.
        left_out: evaluators whose needs are not met.
        given: by variant, what of the data its loss reads beside prompts and answers.
        states_probability: variants whose loss states a probability.
        data: counts from reading the data.
        reference: name of the folder of the held-out inputs.
        training: name of the folder of the training pairs; empty where nothing was trained.
        model_hash: content key of the start policy.
        measured: of the reference, where it is an embedded default.
    """

    FILE: ClassVar[str] = "plan.json"
    runs: tuple[PlannedRun, ...]
    conditions: tuple[PlannedCondition, ...] = ()
    baselines: tuple[str, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    given: dict[str, tuple[str, ...]] = {}
    states_probability: tuple[str, ...] = ()
    data: Values = {}
    reference: str = ""
    training: str = ""
    model_hash: str = ""
    measured: MeasuredReference | None = None

    def under(self, condition: Condition) -> Self:
        """The plan with what the runs of a condition share in place of what the main experiment does."""
        shared = next((one for one in self.conditions if one.condition == condition), None)
        if shared is None:
            return self
        return self.model_copy(update={name: value for name, value in shared if name != "condition" and value})


class EvaluationRecord(Section):
    """How checkpoints were scored; of the settings, what results are read with.

    Args:
        judge: its name; None where there was none.
        judge_settings: its hyper-parameters.
        objectives: their judges or files, by name.
        checkpoints: scored within each training.
        draws: answers per prompt.
        pool: further answers of the reference per prompt.
        max_new_tokens: where an answer was cut; None where it is not known.
        temperature: of sampling.
        batch: answers drawn at a time.
        alpha: level of the tests after correction; None for the experiment's.
        margin: differences within it count as none; None for the default.
    """

    judge: str | None = None
    judge_settings: Values = {}
    objectives: dict[str, str] = {}
    checkpoints: int = 0
    draws: int = 1
    pool: int = 0
    max_new_tokens: int | None = None
    temperature: float = 1.0
    batch: int = 1
    alpha: float | None = None
    margin: float | None = None


class ExperimentRecord(Record):
    """The merged settings of an experiment.

    Args:
        name: of the experiment: that of its folder.
        control: the variant that others are tested against; None for the first of the plan.
        alpha: level of the tests.
        variants: candidates.
        seeds: of every configuration.
        recipe: how runs were trained.
        evaluation: how checkpoints were scored.
    """

    model_config = ConfigDict(extra="allow", frozen=True)
    FILE: ClassVar[str] = "experiment.json"
    name: str
    control: str | None = None
    alpha: float = 0.05
    variants: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    recipe: RecipeRecord = RecipeRecord()
    evaluation: EvaluationRecord = EvaluationRecord()


class SamplesRecord(Record):
    """What the answers beside it were drawn for.

    Args:
        heldout: content key of the held-out inputs and of how answers are drawn.
        seed: mixed into the draws.
    """

    FILE: ClassVar[str] = "samples.json"
    heldout: str
    seed: int


class PoolRecord(Record):
    """What the further answers of the reference beside it were drawn for.

    Args:
        heldout: content key of the held-out inputs and of how answers are drawn.
        seed: mixed into the draws.
        pool: answers per prompt.
    """

    FILE: ClassVar[str] = "pool.json"
    heldout: str
    seed: int
    pool: int


class TournamentRecord(Record):
    """Which selected checkpoints were compared with one another, and by whom.

    Args:
        key: content key of all that decides the verdicts.
        judge: content key of the judge.
        games: pairs of run ids.
        prompts: number of test prompts.
        comparisons: each made in both orders.
        missing: share of verdicts that are missing.
        tokens: that the judge read and wrote.
        cost: of the judge, in its own currency.
    """

    FILE: ClassVar[str] = "note.json"
    key: str
    judge: str
    games: tuple[tuple[str, str], ...]
    prompts: int
    comparisons: int
    missing: float
    tokens: int
    cost: float


class TournamentFailure(Record):
    """Why a tournament was not played, where nobody foresaw it."""

    FILE: ClassVar[str] = "tournament-failed.json"
    reason: str
    traceback: str


def json_values(tree: Mapping[str, object]) -> Values:
    """Values of settings in the form in which JSON holds them: paths as text, tuples as lists."""
    values: Values = json.loads(json.dumps(tree, default=str))
    return values
