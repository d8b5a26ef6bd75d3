"""What is requested: an experiment, and the runs that it unfolds into."""

import itertools
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field, JsonValue, ValidationError

from dpobench.artifacts.records import Condition
from dpobench.artifacts.settings import Settings
from dpobench.data.settings import Data
from dpobench.errors import UnknownName, UserError
from dpobench.evaluation.settings import Evaluation
from dpobench.experiment.studies import Studies
from dpobench.losses.mixture import Mixture
from dpobench.losses.registry import variants as losses
from dpobench.training.run import Recipe, Run

# Settings as they are written: sections within sections, values of TOML.
Tree = dict[str, JsonValue]
# Values of a grid, by variant and hyper-parameter.
Grid = dict[str, dict[str, tuple[bool | int | float | str, ...]]]


class Experiment(Settings):
    """One comparison.

    Args:
        variants: names of the losses; the first is the control unless `control` says otherwise.
        control: the variant that the others are tested against.
        grid: values of hyper-parameters, by variant and parameter; what is absent keeps its default.
        learning_rates: grid of learning rates, the same for all variants; empty for the recipe's.
        seeds: one training of every configuration per seed.
        preset: embedded default to use where no model or data are given.
        world: settings of the embedded default.
        model: folder or hub name of the start policy, which is also the reference.
        plugins: files with losses, evaluators or judges of the user's.
        data: where pairs come from.
        recipe: how runs are trained.
        evaluation: how checkpoints are scored.
        studies: conditions that are trained besides the main experiment.
        baselines: whether losses declared as baselines are trained too, at their defaults; they are no candidates.

    Example:
        >>> experiment = Experiment(variants=("dpo", "ipo"), grid={"dpo": {"beta": (0.1, 0.3)}}, seeds=(0, 1))
        >>> [(run.variant, run.beta, run.seed) for run in experiment.runs("reference")][:3]
        [('dpo', 0.1, 0), ('dpo', 0.1, 1), ('dpo', 0.3, 0)]
    """

    variants: tuple[str, ...] = ()
    control: str | None = None
    grid: Grid = Field(default_factory=dict)
    learning_rates: tuple[Annotated[float, Field(gt=0, le=1)], ...] = ()
    seeds: tuple[int, ...] = (0,)
    preset: str | None = None
    world: Tree = Field(default_factory=dict)
    model: str | None = None
    plugins: tuple[str, ...] = ()
    data: Data = Field(default_factory=Data)
    recipe: Recipe = Field(default_factory=Recipe)
    evaluation: Evaluation = Field(default_factory=Evaluation)
    studies: Studies = Field(default_factory=Studies)
    baselines: bool = True

    def runs(self, reference: str, condition: Condition | None = None) -> list[Run]:
        """All runs in one condition: variants x grids x learning rates x seeds.

        Args:
            reference: key of what the runs share.
            condition: of a study; none is the main experiment.

        Raises:
            UserError: a hyper-parameter or value that the variant does not take.
        """
        runs = []
        for name in self.variants:
            variant, grid = losses.get(name), self.grid.get(name, {})
            rates = self.learning_rates or (self.recipe.learning_rate,)
            for *values, rate, seed in itertools.product(*grid.values(), rates, self.seeds):
                runs.append(
                    Run(
                        variant=name,
                        code=variant.code_hash,
                        params=variant.arguments(dict(zip(grid, values, strict=True))),
                        strength=variant.strength,
                        unit=variant.unit,
                        seed=seed,
                        learning_rate=rate,
                        recipe=self.recipe.model_copy(update={"learning_rate": rate}),
                        reference=reference,
                        condition=condition or Condition(),
                    )
                )
        return runs

    def baseline_names(self) -> tuple[str, ...]:
        """Losses that are trained with the variants because they are declared baselines, and are none of the variants."""
        if not self.baselines:
            return ()
        compared = set()
        for name in self.variants:
            variant = losses.get(name)
            if not isinstance(variant, Mixture):
                compared.add(name)
            elif len(variant.recipe) == 1:  # a mixture of one loss is that loss
                compared |= set(variant.recipe)
        return tuple(name for name in losses.names() if name not in compared and losses.get(name).spec.baseline)

    def with_baselines(self) -> "Experiment":
        """The experiment with its baselines among the variants, to be trained like them; the control stays the same."""
        control = self.control or next(iter(self.variants), None)
        return self.model_copy(update={"variants": (*self.variants, *self.baseline_names()), "control": control})


def read_toml(path: Path) -> Tree:
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


def merge(base: Tree, over: Tree) -> Tree:
    """Lay one tree of settings over another; tables are merged, everything else is replaced."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = merge(below, value) if isinstance(value, dict) and isinstance(below, dict) else value
    return merged


def set_path(tree: Tree, assignment: str) -> None:
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
        below = tree.setdefault(section, {})
        if not isinstance(below, dict):
            raise UserError(f"--set {assignment!r}: {section} is a value, not a section")
        tree = below
    tree[key] = value


def parse(tree: Tree) -> Experiment:
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


def unequal_trials(runs: Sequence[Run]) -> str | None:
    """A warning where variants have unequal numbers of configurations, seeds not counted; None where all have one number."""
    tried = [variant for variant, *_ in {(run.variant, repr(run.params), run.learning_rate): 0 for run in runs}]
    counts = {variant: tried.count(variant) for variant in tried}
    if len(set(counts.values())) < 2:
        return None
    trials = ", ".join(f"{variant} {count}" for variant, count in counts.items())
    return f"unequal numbers of configurations ({trials}): the best of more tries looks better by luck alone; even them out with --grid"
