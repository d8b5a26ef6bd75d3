"""From options, files and presets to one experiment: defaults < preset < file < --set < options."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpobench.artifacts.files import digest
from dpobench.data.perturb import NOISE, SIZE
from dpobench.errors import UnknownName, UserError
from dpobench.evaluation.objectives import BARE, parse_objectives
from dpobench.experiment.arms import check_studies
from dpobench.experiment.config import Experiment, check_experiment, merge, parse, read_toml, set_path
from dpobench.experiment.grids import parse_grids
from dpobench.experiment.plugin_files import register
from dpobench.experiment.studies import QUALITY
from dpobench.losses.registry import variants
from dpobench.training.run import Recipe

PRESETS = Path(__file__).resolve().parents[1] / "synthetic" / "presets"
# Settings that only a training reads, by section.
_TRAINED = {
    "": {"variants", "grid", "learning_rates", "seeds", "preset", "world", "studies", "baselines"},
    "data": {"heldout", "heldout_share", "limit"},
    "evaluation": {"checkpoints"},
    "recipe": set(Recipe.model_fields) - {"max_tokens", "max_prompt_tokens"},
}


@dataclass(frozen=True)
class Asked:
    """What stood on the command line; empty where nothing did."""

    variants: Sequence[str] = ()
    beta_grid: Sequence[str] = ()
    grid: Sequence[str] = ()
    learning_rates: Sequence[float] = ()
    seeds: Sequence[int] = ()
    tasks: Sequence[str] = ()
    checkpoints: int | None = None
    control: str | None = None
    preset: str | None = None
    model: str | None = None
    data_source: str | None = None
    heldout: str | None = None
    judge: str | None = None
    objectives: Sequence[str] = ()
    plugins: Sequence[str] = ()
    config: Path | None = None
    assignments: Sequence[str] = ()
    label_noise: Sequence[float] = ()
    train_size: Sequence[int] = ()
    reference_quality: Sequence[float] = ()
    rounds: int | None = None
    baselines: bool | None = None

    def tree(self) -> dict[str, Any]:
        """As settings, where something was said."""
        plain = {
            "variants": list(self.variants),
            "learning_rates": list(self.learning_rates),
            "seeds": list(self.seeds),
            "control": self.control,
            "preset": self.preset,
            "model": self.model,
            "plugins": [str(Path(file).resolve()) for file in self.plugins],
            "data": {name: value for name, value in (("source", self.data_source), ("heldout", self.heldout)) if value},
            "evaluation": {
                name: value
                for name, value in (("judge", self.judge), ("tasks", list(self.tasks)), ("objectives", self._aims()))
                if value
            }
            | ({} if self.checkpoints is None else {"checkpoints": self.checkpoints}),
        }
        studies = {name: list(getattr(self, name)) for name in (NOISE, SIZE, QUALITY)} | {"rounds": self.rounds}
        plain["studies"] = {name: value for name, value in studies.items() if value}
        said = {name: value for name, value in plain.items() if value}
        return said if self.baselines is None else said | {"baselines": self.baselines}

    def _aims(self) -> dict[str, str]:
        if self.bare_objectives and len(self.objectives) > 1:
            raise UserError("--objectives is given bare and with values; choose one of both")
        return {} if self.bare_objectives else parse_objectives(self.objectives)

    @property
    def bare_objectives(self) -> bool:
        """Whether the embedded default's own objectives are asked for."""
        return BARE in self.objectives


def experiment(asked: Asked) -> tuple[Experiment, list[str]]:
    """Merge everything that was said.

    Returns: the experiment, and warnings to show.

    Raises:
        UserError: an unknown name, key or value; only one of model and data; nothing to compare.
    """
    said: dict[str, Any] = read_toml(asked.config) if asked.config else {}
    for assignment in asked.assignments:
        set_path(said, assignment)
    said = merge(said, asked.tree())
    alone = parse(said)
    own = alone.model is not None or alone.data.source is not None
    if own and (alone.preset or alone.world):
        raise UserError("a preset brings its own model and data; leave out --preset and [world], or --model and --data")
    if not own and (alone.data.heldout or alone.data.prompts):
        raise UserError("held-out data need --model and --data; the embedded default brings its own")
    base = {} if own else _for_judge(preset(alone.preset or "small"), alone.evaluation.judge)
    found = alone if own else parse(merge(base, {**said, "preset": alone.preset or "small"}))
    if asked.bare_objectives:
        found = _with_own_objectives(found)
    register(found.plugins)
    for name in found.variants:
        variants.get(name)
    grid, warnings = parse_grids(asked.beta_grid, asked.grid, found.variants, variants)
    found = found.model_copy(
        update={"grid": merge(found.grid, {name: values for name, values in grid.items() if values})}
    )
    check_experiment(found)
    check_studies(found)
    return found, warnings


def _with_own_objectives(found: Experiment) -> Experiment:
    """The embedded default's objectives, the parts of its reward.

    Raises:
        UserError: the data are the user's own.
    """
    if found.preset is None:
        raise UserError(
            "a bare --objectives takes those of the embedded default; with --model and --data write for example "
            "--objectives helpful=JUDGE:SETTING,harmless=PAIRS.jsonl"
        )
    aims = read_toml(PRESETS.parent / "objectives.toml")[found.preset]
    return found.model_copy(update={"evaluation": found.evaluation.model_copy(update={"objectives": aims})})


def _for_judge(base: dict[str, Any], judge: str | None) -> dict[str, Any]:
    """A preset without the settings of its own judge, where another one is asked for."""
    if judge in (None, base["evaluation"]["judge"]):
        return base
    kept = {name: value for name, value in base["evaluation"].items() if name != "judge_settings"}
    return base | {"evaluation": kept}


def preset(name: str) -> dict[str, Any]:
    """Settings of an embedded default.

    Raises:
        UnknownName: there is none of this name.
    """
    known = sorted(file.stem for file in PRESETS.glob("*.toml"))
    if name not in known:
        raise UnknownName("preset", name, known)
    return read_toml(PRESETS / f"{name}.toml")


def scoring(asked: Asked) -> Experiment:
    """The settings of scoring alone: no variants, nothing to train.

    Raises:
        UserError: a setting is unknown, wrong, or without effect where nothing is trained.
    """
    if asked.bare_objectives:
        raise UserError(
            "a bare --objectives takes those of the embedded default, which is no part of this; write for example "
            "--objectives helpful=JUDGE:SETTING,harmless=PAIRS.jsonl"
        )
    said: dict[str, Any] = {}
    for assignment in asked.assignments:
        set_path(said, assignment)
    found = parse(merge(said, asked.tree()))
    for section, known in _TRAINED.items():
        inside = said if section == "" else said.get(section, {})
        if idle := sorted(set(inside) & known):
            name = f"{section}.{idle[0]}" if section else idle[0]
            raise UserError(
                f"--set {name}: it has no effect where checkpoints are scored and nothing is trained; leave it out"
            )
    return found


def default_folder(asked: Experiment) -> Path:
    """Where an experiment lands that named no folder: the same for the same experiment, so that it goes on there."""
    what = asked.preset or Path(asked.model or "model").name
    return Path("results") / f"{what}-{'-'.join(asked.variants)[:40]}-{digest(asked.model_dump(mode='json'))[:6]}"
