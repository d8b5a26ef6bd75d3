"""One training as data: the recipe that all runs share, and a run."""

import math
from typing import Literal, cast

from pydantic import Field

from dpobench.artifacts.files import digest
from dpobench.artifacts.records import Cell, Condition, PlannedRun, RecipeRecord, Values
from dpobench.artifacts.settings import Settings

# Version of the training harness, part of every run's id: raise it where the same run would come to other numbers.
HARNESS = 1


class Recipe(Settings):
    """How every run of an experiment is trained; nothing here may differ between variants but the learning rate's grid.

    Args:
        learning_rate: peak of AdamW's learning rate.
        batch: pairs in one optimizer step, over all devices: the only batch there is to set.
        epochs: passes over the training pairs.
        warmup: share of the steps over which the learning rate rises.
        schedule: what it does afterwards.
        weight_decay: AdamW's.
        clip: largest gradient norm; the norm before clipping is logged.
        precision: "float32", or "bf16" for bf16 arithmetic on float32 weights.
        max_tokens: prompt and answer together; longer answers are cut and lose their end token.
        max_prompt_tokens: longer prompts are left out, for every variant alike.
        micro_batch_tokens: memory bound of one forward pass, never more than 1,536 on a CPU; changes no result beyond rounding.
        recompute_activations: keep only what enters a layer and compute the rest again; changes no result.
        reference_every: steps after which the reference moves towards the policy (TR-DPO); 0 keeps it still.
        reference_mix: share of the policy in the moved reference; 1 copies it.
    """

    learning_rate: float = Field(5e-7, gt=0, le=1)
    batch: int = Field(32, ge=1)
    epochs: float = Field(1.0, gt=0)
    warmup: float = Field(0.1, ge=0, le=1)
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    weight_decay: float = Field(0.0, ge=0)
    clip: float = Field(1.0, gt=0)
    precision: Literal["float32", "bf16"] = "float32"
    max_tokens: int = Field(1024, ge=8)
    max_prompt_tokens: int = Field(512, ge=1)
    micro_batch_tokens: int = Field(8192, ge=8)
    recompute_activations: bool = False
    reference_every: int = Field(0, ge=0)
    reference_mix: float = Field(1.0, gt=0, le=1)

    def steps(self, pairs: int) -> int:
        """Optimizer steps for so many pairs, at least one."""
        return max(1, round(self.epochs * pairs / self.batch))

    def rate(self, step: int, steps: int, peak: float) -> float:
        """Learning rate of a step, a pure function of its number."""
        rise = max(1, math.ceil(self.warmup * steps)) if self.warmup else 0
        if step < rise:
            return peak * (step + 1) / rise
        done = (step - rise) / max(1, steps - rise)
        shape = {"linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done)), "constant": 1.0}
        return peak * shape[self.schedule]


class Run(Settings):
    """One training: everything that decides its weights, and nothing else (no device, path or clock).

    Args:
        variant: name of the loss.
        code: hash of the plugin's code.
        params: all its hyper-parameters.
        strength: name of the one that sets the regularisation strength.
        unit: its unit.
        seed: of sample order and draws.
        learning_rate: peak.
        recipe: what all runs share.
        reference: key of the shared inputs: model, tokens, reference log-probabilities; in a later round, of all that decides the
            pairs, the run before it included.
        condition: what a study changes for this run; nothing in the main experiment.
        harness: version of the harness that trains it.
    """

    variant: str
    code: str
    params: Values
    strength: str
    unit: str
    seed: int
    learning_rate: float
    recipe: Recipe
    reference: str
    condition: Condition = Condition()
    harness: int = HARNESS

    @property
    def id(self) -> str:
        """Variant and hash of all fields: a changed field is another run."""
        return f"{self.variant.replace(':', '_')[:100]}-{digest(self.model_dump())}"

    @property
    def beta(self) -> Cell:
        """Value of the hyper-parameter that sets the regularisation strength."""
        return cast(Cell, self.params[self.strength])

    def describe(self) -> PlannedRun:
        """What plan and record say of the run."""
        recipe = RecipeRecord.model_validate(self.recipe.model_dump())
        fields = self.model_dump(exclude={"recipe", "condition"})
        return PlannedRun(id=self.id, beta=self.beta, condition=self.condition, recipe=recipe, **fields)
