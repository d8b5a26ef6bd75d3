"""What is asked for: an experiment, what all its runs share, and the runs it unfolds into."""

import itertools
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from dpobench.data.perturb import Condition
from dpobench.errors import UnknownName, UserError
from dpobench.experiment.studies import Studies
from dpobench.losses.variant import Variant
from dpobench.plugins.registry import Registry

if TYPE_CHECKING:
    pass
from dpobench.artifacts.settings import Settings
from dpobench.data.settings import Data
from dpobench.evaluation.settings import Evaluation
from dpobench.training.run import Recipe, Run


class Experiment(Settings):
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
