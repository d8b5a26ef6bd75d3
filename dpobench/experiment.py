"""What is asked for: an experiment, what all its runs share, and the runs it unfolds into."""

import itertools
import math
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dpobench.errors import UnknownName, UserError
from dpobench.heldout import Sampling
from dpobench.registry import Registry, Variant
from dpobench.store import digest
from dpobench.studies import Condition, Studies

if TYPE_CHECKING:
    from dpobench.data import DataReport


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Recipe(_Settings):
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


class Evaluation(_Settings):
    """What every checkpoint is scored on.

    Args:
        evaluators: names; empty for all whose needs are met.
        judge: name of the judge; none where there is no truth to ask.
        judge_settings: hyper-parameters of the judge.
        settings: hyper-parameters of evaluators, by name.
        tasks: lm-eval task names.
        task_folders: folders with task definitions of your own.
        prompts: most held-out prompts answered.
        heldout_pairs: most held-out pairs scored.
        opponents: whose answers are compared with: "reference", "chosen", and for judges that compare two answers
            "round_robin", every selected cell with every other. Empty: the first two where scoring costs nothing, else the first.
        draws: answers per prompt.
        pool: further answers of the reference per prompt: for the judge's A/A control and for the best of several.
        max_new_tokens: where an answer is cut.
        temperature: of sampling; KL is estimated on further answers where it is not 1.
        batch: answers drawn, and sequences scored, at a time.
        checkpoints: kept and scored within each training of the experiment proper, evenly spaced, beside its end.
        objectives: several aims by name, each "JUDGE:SETTING" or a file of held-out pairs; see `dpobench.objectives`.
        alpha: level of the tests after correction.
        margin: differences of the ranking metric within it count as none, where equivalence is tested.
    """

    evaluators: tuple[str, ...] = ()
    judge: str | None = None
    judge_settings: dict[str, Any] = Field(default_factory=dict)
    settings: dict[str, dict[str, Any]] = Field(default_factory=dict)
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


class Data(_Settings):
    """Where preference pairs come from and how they are read.

    Args:
        source: file, folder or hub name of the training pairs.
        heldout: the same for held-out pairs; without it a share of the prompts of `source` is held out.
        prompts: file of further held-out prompts; without it those of the held-out pairs.
        split: split of a hub data set.
        heldout_share: share of the prompts held out where `heldout` is not given.
        format: layout, where it is not to be detected.
        columns: column of the file for each column of ours.
        template: "auto", "plain" or a Jinja file.
        on_bad_row: "error", or "drop" and count.
        most_lost: share of the rows that may be left out because their prompt is too long.
        limit: most training pairs used, the first by hash.
    """

    source: str | None = None
    heldout: str | None = None
    prompts: str | None = None
    split: str | None = None
    heldout_share: float = Field(0.1, gt=0, lt=1)
    format: str | None = None
    columns: dict[str, str] = Field(default_factory=dict)
    template: str = "auto"
    on_bad_row: Literal["error", "drop"] = "error"
    most_lost: float = Field(0.1, ge=0, le=1)
    limit: int | None = Field(None, ge=1)

    def read(self, source: str, control: Sequence[str]) -> "DataReport":
        """Read preference pairs as these settings say.

        Args:
            source: file, folder or hub name.
            control: control tokens of the model, which no text of the data may be taken for.
        """
        from dpobench.data import read

        return read(
            source,
            split=self.split,
            layout=self.format,
            columns=self.columns,
            on_bad_row=self.on_bad_row,
            control=control,
        )


class Experiment(_Settings):
    """One comparison.

    Args:
        variants: names of the losses; the first is the control unless `control` says otherwise.
        control: the variant others are tested against.
        grid: values of hyper-parameters, by variant and parameter; what is absent keeps its default.
        learning_rates: grid of learning rates, alike for all variants; empty for the recipe's.
        seeds: one training of every configuration per seed.
        preset: embedded default to use where no model or data are given.
        world: settings of the embedded default.
        model: folder or hub name of the start policy, which is also the reference.
        plugins: files with losses, evaluators or judges of your own.
        data: where pairs come from.
        recipe: how runs are trained.
        evaluation: how checkpoints are scored.
        studies: what is changed beside the experiment proper.
        baselines: whether losses declared as baselines are trained too, at their defaults; they are no candidates.
    """

    variants: tuple[str, ...] = ()
    control: str | None = None
    grid: dict[str, dict[str, tuple[Any, ...]]] = Field(default_factory=dict)
    learning_rates: tuple[Annotated[float, Field(gt=0, le=1)], ...] = ()
    seeds: tuple[int, ...] = (0,)
    preset: str | None = None
    world: dict[str, Any] = Field(default_factory=dict)
    model: str | None = None
    plugins: tuple[str, ...] = ()
    data: Data = Field(default_factory=Data)
    recipe: Recipe = Field(default_factory=Recipe)
    evaluation: Evaluation = Field(default_factory=Evaluation)
    studies: Studies = Field(default_factory=Studies)
    baselines: bool = True


class Run(_Settings):
    """One training: everything that decides its weights, and nothing else (no device, path or clock).

    Args:
        variant: name of the loss.
        code: hash of the plugin's code.
        params: all its hyper-parameters.
        strength: name of the one that sets the strength.
        unit: unit of the strength.
        seed: of sample order and draws.
        learning_rate: peak.
        recipe: what all runs share.
        reference: key of the shared inputs: model, tokens, reference log-probabilities; in a later round, of all that decides the
            pairs, the run before it included.
        condition: what a study changes for this run; empty in the experiment proper.
    """

    variant: str
    code: str
    params: dict[str, Any]
    strength: str
    unit: str
    seed: int
    learning_rate: float
    recipe: Recipe
    reference: str
    condition: dict[str, Any] = Field(default_factory=dict)

    @property
    def id(self) -> str:
        """Variant and hash of all fields: a changed field is another run."""
        told = self.model_dump(exclude=None if self.condition else {"condition"})
        return f"{self.variant.replace(':', '_')[:100]}-{digest(told)}"

    @property
    def beta(self) -> Any:
        """Value of the strength."""
        return self.params[self.strength]

    def describe(self) -> dict[str, Any]:
        """What plan and run files say of the run."""
        named = {"id": self.id, "beta": self.beta}
        return named | self.model_dump(exclude={"recipe"}) | {"recipe": self.recipe.model_dump()}


def read_toml(path: Path) -> dict[str, Any]:
    """Read an experiment file.

    Raises:
        UserError: it is absent or is no TOML; line and column are named.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; name an experiment file in TOML") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: {error}") from error


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Lay one tree of settings over another; tables are merged, everything else is replaced."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def set_path(tree: dict[str, Any], assignment: str) -> None:
    """Apply one `section.key=value` (the value in TOML, or plain text) to a tree of settings.

    Raises:
        UserError: there is no `=`.
    """
    path, sign, text = assignment.partition("=")
    if not sign or not path.strip():
        raise UserError(f"--set {assignment!r}: write section.key=value, for example --set recipe.epochs=2")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *sections, key = path.strip().split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise UserError(f"--set {assignment!r}: {section} is a value, not a section")
    tree[key] = value


def parse(tree: Mapping[str, Any]) -> Experiment:
    """Turn a tree of settings into an experiment.

    Raises:
        UserError: an unknown key (with the nearest known one), a wrong type or a value out of range.
    """
    try:
        return Experiment.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise UnknownName("setting", path, _known(Experiment)) from None
        raise UserError(f"{path} = {first['input']!r}: {first['msg'].lower()}") from None


def _known(model: type[BaseModel], prefix: str = "") -> Iterable[str]:
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _known(kind, f"{prefix}{name}.")
        else:
            yield prefix + name


def unfold(experiment: Experiment, registry: Registry, reference: str, condition: Condition | None = None) -> list[Run]:
    """All runs of an experiment in one condition: variants x grids x learning rates x seeds.

    Args:
        experiment: what was asked for.
        registry: where variants are found.
        reference: key of what the runs share.
        condition: of a study; none is the experiment proper.

    Raises:
        UserError: a variant named twice, a parameter or value it does not take, no seeds, a control that is not among the variants.
    """
    check_experiment(experiment)
    runs = []
    for name in experiment.variants:
        variant: Variant = registry.get(name)
        grid = experiment.grid.get(name, {})
        for values in itertools.product(*grid.values()):
            params = variant.arguments(dict(zip(grid, values, strict=True)))
            for rate, seed in itertools.product(
                experiment.learning_rates or (experiment.recipe.learning_rate,), experiment.seeds
            ):
                run = Run(variant=name, code=variant.code_hash, params=params, strength=variant.strength, unit=variant.unit,
                          seed=seed, learning_rate=rate, reference=reference, condition=dict(condition or {}),
                          recipe=experiment.recipe.model_copy(update={"learning_rate": rate}))  # fmt: skip
                runs.append(run)
    return runs


def unequal_trials(runs: Sequence[Run]) -> str | None:
    """A warning where variants have unequal numbers of configurations, seeds not counted; None where all have one number."""
    tried = [variant for variant, *_ in {(run.variant, repr(run.params), run.learning_rate): 0 for run in runs}]
    counts = {variant: tried.count(variant) for variant in tried}
    if len(set(counts.values())) < 2:
        return None
    told = ", ".join(f"{variant} {count}" for variant, count in counts.items())
    return f"unequal numbers of configurations ({told}): the best of more tries looks better by luck alone; even them out with --grid"


def check_experiment(experiment: Experiment) -> None:
    """Refuse what no run could mend.

    Raises:
        UserError: no variant, one named twice, no seed, or a control or grid that is not among the variants.
    """
    if not experiment.variants:
        raise UserError("no variant is chosen; write for example --variants dpo,ipo")
    for label, values in (
        ("variants", experiment.variants),
        ("seeds", experiment.seeds),
        ("learning_rates", experiment.learning_rates),
    ):
        twice = [value for value in set(values) if list(values).count(value) > 1]
        if twice:
            raise UserError(f"{label}: {twice[0]} is named twice")
    if not experiment.seeds or any(not 0 <= seed < 2**32 for seed in experiment.seeds):
        raise UserError(f"seeds = {list(experiment.seeds)}: at least one, each from 0 to {2**32 - 1}")
    for name, grid in experiment.grid.items():
        for parameter, values in grid.items():
            if not values or len(set(values)) < len(values):
                raise UserError(f"grid.{name}.{parameter} = {list(values)}: at least one value, each once")
    for name in [experiment.control or experiment.variants[0], *experiment.grid]:
        if name not in experiment.variants:
            raise UnknownName("chosen variant", name, experiment.variants)
