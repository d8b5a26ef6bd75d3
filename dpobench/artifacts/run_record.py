"""The record of a run: what it is, what became of it, and where its numbers came from."""

from typing import ClassVar, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from dpobench.artifacts.format import Cell, Part, Record, Section, Status, Values


class Condition(Part):
    """What a study changes for a run; nothing in the main experiment.

    Args:
        label_noise: share of the training labels that are flipped.
        train_size: number of training pairs.
        reference_quality: share of the reference's training that was done.
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
        reference_every: steps after which the reference moved; 0 where it did not move.
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
    params: Values = Field(default_factory=dict)
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
    versions: dict[str, str] = Field(default_factory=dict)
    threads: int = 1
    device: str = "cpu"
    hardware: str = ""
    cores: int | None = None
    precision: str = ""
    world_size: int = 1
    host: str = ""
    model_hash: str = ""
    data_hash: str = ""


class Checks(Part):
    """What was checked before the first step and after the last; in nats unless stated.

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
    """What a training cost besides its time.

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
        ties: whose answers the judge rates equal.
        no_verdict: without a verdict.
        pairs: that came of the others.
    """

    prompts: int
    equal: int
    ties: int
    no_verdict: int
    pairs: int


class CheckpointSource(Part):
    """Where a checkpoint was entered from that `dpobench evaluate` scored.

    Args:
        folder: of the model or adapter.
        base: folder of the adapter's base; None for a whole model.
        log: of its training; None where it was trained elsewhere.
        trained_with: loss of the run it came from; None where it was trained elsewhere.
        states_probability: whether that loss states a probability.
        baseline: whether it was a baseline there.
        given: what of the data the loss read besides prompts and answers.
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
    seconds: dict[str, float] = Field(default_factory=dict)
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
