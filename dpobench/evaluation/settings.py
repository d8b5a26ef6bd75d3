"""Settings of what every checkpoint is scored on."""

from collections.abc import Mapping
from typing import Literal, TypeAlias

from pydantic import Field, JsonValue

from dpobench.artifacts.settings import Settings
from dpobench.models.generate import Sampling

SettingsTable: TypeAlias = Mapping[str, JsonValue]
"""Settings by name, of a judge or an evaluator or of a group within them: what JSON can hold."""


class Evaluation(Settings):
    """What every checkpoint is scored on.

    Args:
        evaluators: names; empty for all whose needs are met.
        judge: name of the judge; None where nothing says which of two answers is better.
        judge_settings: hyper-parameters of the judge.
        settings: hyper-parameters of evaluators, by name.
        tasks: lm-eval task names.
        task_folders: folders with local task definitions.
        prompts: most held-out prompts answered.
        heldout_pairs: most held-out pairs scored.
        opponents: whose answers are compared with: "reference", "chosen", and for judges that compare two answers
            "round_robin", every selected cell with every other. Empty: the first two where scoring costs nothing, else the first.
        draws: answers per prompt.
        pool: further answers of the reference per prompt: for the judge's A/A control and for the best of several.
        max_new_tokens: where an answer is cut.
        temperature: of sampling; KL is estimated on further answers where it is not 1.
        batch: answers drawn, and sequences scored, at a time.
        checkpoints: saved and scored within each training of the main experiment, evenly spaced, besides its end.
        objectives: several objectives by name, each "JUDGE:SETTING" or a file of held-out pairs; see `dpobench.evaluation.objectives`.
        alpha: level of the tests after correction.
        margin: differences of the ranking metric within it count as none, where equivalence is tested.
    """

    evaluators: tuple[str, ...] = ()
    judge: str | None = None
    judge_settings: dict[str, JsonValue] = Field(default_factory=dict)
    settings: dict[str, dict[str, JsonValue]] = Field(default_factory=dict)
    tasks: tuple[str, ...] = ()
    task_folders: tuple[str, ...] = ()
    prompts: int = Field(512, ge=2)
    heldout_pairs: int = Field(1024, ge=2)
    opponents: tuple[Literal["reference", "chosen", "round_robin"], ...] = ()
    draws: int = Field(1, ge=1)
    pool: int = Field(4, ge=0)
    max_new_tokens: int = Field(128, ge=1)
    temperature: float = Field(1.0, gt=0)
    batch: int = Field(128, ge=1)
    checkpoints: int = Field(0, ge=0, le=50)
    objectives: dict[str, str] = Field(default_factory=dict)
    alpha: float = Field(0.05, gt=0, lt=1)
    margin: float = Field(0.02, gt=0)

    @property
    def sampling(self) -> Sampling:
        """The sampling settings."""
        return Sampling(self.draws, self.max_new_tokens, self.temperature, batch=self.batch)
