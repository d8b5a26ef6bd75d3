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

from pathlib import Path
from typing import ClassVar, Self

from pydantic import ConfigDict, Field

from dpobench.artifacts.files import read_json
from dpobench.artifacts.format import Cell, Part, Record, Section, Status, Values, json_values
from dpobench.artifacts.run_record import (
    AnswerCounts,
    CheckpointSource,
    Checks,
    Condition,
    Cost,
    PlannedRun,
    Provenance,
    RecipeRecord,
    RunRecord,
)

__all__ = [
    "AnswerCounts",
    "Cell",
    "CheckpointSource",
    "Checks",
    "Condition",
    "Cost",
    "CountsRecord",
    "EvaluationRecord",
    "ExperimentRecord",
    "GoldsRecord",
    "LeftOut",
    "MeasuredReference",
    "Part",
    "PlanRecord",
    "PlannedCondition",
    "PlannedRun",
    "PoolRecord",
    "Provenance",
    "ProvenanceRecord",
    "RecipeRecord",
    "Record",
    "RunRecord",
    "SamplesRecord",
    "Section",
    "Status",
    "TournamentFailure",
    "TournamentRecord",
    "Values",
    "json_values",
]


class ProvenanceRecord(Record, Provenance):
    """Where the files of a folder of shared inputs came from.

    Args:
        need: name of what was computed, where losses declared it.
    """

    FILE: ClassVar[str] = "provenance.json"
    need: str = ""


class CountsRecord(Record):
    """The counts of one later round, in the folder of its pairs."""

    FILE: ClassVar[str] = "counts.json"
    counts: AnswerCounts


class GoldsRecord(Record):
    """Token ids of the data set's best answer to each training prompt that has one, for later rounds."""

    FILE: ClassVar[str] = "golds.json"
    answers: dict[str, list[int]]


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
        given: by variant, what of the data its loss reads besides prompts and answers.
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
    given: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    states_probability: tuple[str, ...] = ()
    data: Values = Field(default_factory=dict)
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
    judge_settings: Values = Field(default_factory=dict)
    objectives: dict[str, str] = Field(default_factory=dict)
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
    """What the answers in the same folder were drawn for.

    Args:
        heldout: content key of the held-out inputs and of how answers are drawn.
        seed: mixed into the draws.
    """

    FILE: ClassVar[str] = "samples.json"
    heldout: str
    seed: int


class PoolRecord(Record):
    """What the further answers of the reference in the same folder were drawn for.

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
