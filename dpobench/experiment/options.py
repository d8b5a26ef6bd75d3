"""From options, files and presets to one experiment: defaults < preset < file < --set < options."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from dpobench.artifacts.files import digest
from dpobench.errors import UnknownName, UserError
from dpobench.evaluation.objectives import OBJECTIVE_NAME
from dpobench.evaluation.settings import Evaluation
from dpobench.experiment.config import Experiment, Tree, merge, parse, read_toml, set_path
from dpobench.experiment.grids import parse_grids
from dpobench.experiment.plugin_files import register
from dpobench.losses.registry import variants
from dpobench.training.run import Recipe

PRESETS = Path(__file__).resolve().parents[1] / "synthetic" / "presets"
# `--objectives` without a value: those that the embedded default brings.
BARE = "auto"
# Settings that only a training reads, by section.
_READ_BY_TRAINING = {
    "": {"variants", "grid", "learning_rates", "seeds", "preset", "world", "studies", "baselines"},
    "data": {"heldout", "heldout_share", "limit"},
    "evaluation": {"checkpoints"},
    "recipe": set(Recipe.model_fields) - {"max_tokens", "max_prompt_tokens"},
}


@dataclass(frozen=True)
class Options:
    """What the command line or a caller of `dpobench.run` gives; empty or None where nothing is given.

    Args:
        variants: names of losses; the first is the control.
        beta_grid: "auto" for each variant's own grid, "0.05,0.1" for all variants, "dpo=0.05,0.1" for one.
        grid: grids of any hyper-parameter, "VARIANT.PARAMETER=VALUE,VALUE".
        lr_grid: learning rates, the same for all variants.
        seeds: of the trainings.
        control: the variant that the others are tested against.
        preset: an embedded default.
        model: folder or hub name of the start policy.
        data: file, folder or hub name of preference pairs.
        heldout: the same for held-out pairs.
        judge: name of the judge.
        tasks: lm-eval task names.
        objectives: "NAME=VALUE,...", or `BARE`.
        checkpoints: number of checkpoints scored within each training.
        label_noise: shares of flipped training labels, a study.
        train_size: numbers of training pairs, a study.
        reference_quality: shares of the embedded base model's training, a study.
        rounds: of training on the policy's own answers, a study.
        baselines: whether baselines are trained beside the variants.
        plugins: files with losses, evaluators or judges.
        config: experiment file in TOML.
        assignments: "section.key=value", any setting.
    """

    variants: Sequence[str] = ()
    beta_grid: Sequence[str] = ()
    grid: Sequence[str] = ()
    lr_grid: Sequence[float] = ()
    seeds: Sequence[int] = ()
    control: str | None = None
    preset: str | None = None
    model: str | None = None
    data: str | None = None
    heldout: str | None = None
    judge: str | None = None
    tasks: Sequence[str] = ()
    objectives: Sequence[str] = ()
    checkpoints: int | None = None
    label_noise: Sequence[float] = ()
    train_size: Sequence[int] = ()
    reference_quality: Sequence[float] = ()
    rounds: int | None = None
    baselines: bool | None = None
    plugins: Sequence[str | Path] = ()
    config: Path | None = None
    assignments: Sequence[str] = ()

    def experiment(self) -> tuple[Experiment, list[str]]:
        """The experiment that is requested, every setting resolved. What cannot work is refused by `validate`.

        Returns: the experiment, and warnings to show.

        Raises:
            UserError: an unknown name, key or value; a preset besides a model or data.
        """
        tree = self._tree()
        given = parse(tree)
        brings_its_own = given.model is not None or given.data.source is not None
        if brings_its_own and (given.preset or given.world):
            raise UserError(
                "a preset brings its own model and data; leave out --preset and [world], or --model and --data"
            )
        if not brings_its_own:
            if given.data.heldout or given.data.prompts:
                raise UserError("held-out data need --model and --data; the embedded default brings its own")
            name = given.preset or "small"
            experiment = parse(merge(_for_judge(preset(name), given.evaluation.judge), {**tree, "preset": name}))
        else:
            experiment = given
        if self.asks_for_embedded_objectives:
            experiment = experiment.model_copy(
                update={"evaluation": _with_embedded_objectives(experiment.evaluation, experiment.preset)}
            )
        register(experiment.plugins)
        losses = {name: variants.get(name) for name in experiment.variants}
        grid, warnings = parse_grids(self.beta_grid, self.grid, losses)
        grids = dict(experiment.grid)
        for name, values in grid.items():
            if values:
                grids[name] = {**grids.get(name, {}), **values}
        return experiment.model_copy(update={"grid": grids}), warnings

    def scoring(self) -> Experiment:
        """The settings of scoring alone: no variants, nothing to train.

        Raises:
            UserError: a setting is unknown, wrong, or without effect where nothing is trained.
        """
        if self.asks_for_embedded_objectives:
            raise UserError(
                "a bare --objectives takes those of the embedded default, which is no part of this; write for example "
                "--objectives helpful=JUDGE:SETTING,harmless=PAIRS.jsonl"
            )
        tree = self._tree()
        for section, read_by_training in _READ_BY_TRAINING.items():
            inside = tree if section == "" else tree.get(section)
            if isinstance(inside, dict) and (without_effect := sorted(inside.keys() & read_by_training)):
                name = f"{section}.{without_effect[0]}" if section else without_effect[0]
                raise UserError(
                    f"--set {name}: it has no effect where checkpoints are scored and nothing is trained; leave it out"
                )
        return parse(tree)

    @property
    def asks_for_embedded_objectives(self) -> bool:
        """Whether the embedded default's own objectives are requested."""
        return BARE in self.objectives

    def _tree(self) -> Tree:
        """File, `--set` and options as one tree of settings; absent where nothing is given."""
        tree: Tree = read_toml(self.config) if self.config else {}
        for assignment in self.assignments:
            set_path(tree, assignment)
        if self.asks_for_embedded_objectives and len(self.objectives) > 1:
            raise UserError("--objectives is given bare and with values; choose one of both")
        objectives = {} if self.asks_for_embedded_objectives else parse_objectives(self.objectives)
        top: Mapping[str, object] = {
            "variants": list(self.variants),
            "learning_rates": list(self.lr_grid),
            "seeds": list(self.seeds),
            "control": self.control,
            "preset": self.preset,
            "model": self.model,
            "plugins": [str(Path(file).resolve()) for file in self.plugins],
            "baselines": self.baselines,
        }
        sections: Mapping[str, Mapping[str, object]] = {
            "": top,
            "data": {"source": self.data, "heldout": self.heldout},
            "evaluation": {
                "judge": self.judge,
                "tasks": list(self.tasks),
                "objectives": objectives,
                "checkpoints": self.checkpoints,
            },
            "studies": {
                "label_noise": list(self.label_noise),
                "train_size": list(self.train_size),
                "reference_quality": list(self.reference_quality),
                "rounds": self.rounds,
            },
        }
        options: Tree = {}
        for section, values in sections.items():
            given = {key: _plain(value) for key, value in values.items() if value not in (None, "", [], {})}
            if given:
                options |= {section: given} if section else given
        return merge(tree, options)


def _plain(value: object) -> JsonValue:
    """A value of an option as JSON has it."""
    if isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if not isinstance(value, list):
        raise UserError(f"{value!r}: no value of an option; a number, a text or a list of them is expected")
    return [_plain(one) for one in value]


def parse_objectives(texts: Sequence[str]) -> dict[str, str]:
    """Read `NAME=VALUE,NAME=VALUE`, given once or several times.

    A comma separates two objectives only where a name and an equals sign follow it.

    Returns: values by name, in their order.

    Raises:
        UserError: a part without a name or a value, a name that is no name, or one given twice.

    Example:
        >>> parse_objectives(["a=gold:x.py:f,b=p.jsonl"])
        {'a': 'gold:x.py:f', 'b': 'p.jsonl'}
    """
    objectives: dict[str, str] = {}
    for part in (one for text in texts for one in re.split(r",(?=\s*[\w-]+\s*=)", text)):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not value or not OBJECTIVE_NAME.fullmatch(name):
            raise UserError(
                f"--objectives {part.strip()!r}: a name and a value are expected; "
                "write for example helpful=JUDGE:SETTING,harmless=PAIRS.jsonl"
            )
        if name in objectives:
            raise UserError(f"--objectives: {name} is named twice")
        objectives[name] = value
    return objectives


def _with_embedded_objectives(evaluation: Evaluation, preset_name: str | None) -> Evaluation:
    """The embedded default's objectives, the parts of its reward.

    Raises:
        UserError: the data are the user's own.
    """
    if preset_name is None:
        raise UserError(
            "a bare --objectives takes those of the embedded default; with --model and --data write for example "
            "--objectives helpful=JUDGE:SETTING,harmless=PAIRS.jsonl"
        )
    return evaluation.model_copy(update={"objectives": read_toml(PRESETS.parent / "objectives.toml")[preset_name]})


def _for_judge(base: Tree, judge: str | None) -> Tree:
    """A preset without the settings of its own judge, where another one is requested."""
    evaluation = base["evaluation"]
    assert isinstance(evaluation, dict)
    if judge in (None, evaluation["judge"]):
        return base
    return base | {"evaluation": {name: value for name, value in evaluation.items() if name != "judge_settings"}}


def preset(name: str) -> Tree:
    """Settings of an embedded default.

    Raises:
        UnknownName: there is none of this name.
    """
    known = sorted(file.stem for file in PRESETS.glob("*.toml"))
    if name not in known:
        raise UnknownName("preset", name, known)
    return read_toml(PRESETS / f"{name}.toml")


def default_folder(experiment: Experiment) -> Path:
    """Where an experiment lands that named no folder: the same for the same experiment, so that it resumes there."""
    start = experiment.preset or Path(experiment.model or "model").name
    key = digest(experiment.model_dump(mode="json"))[:6]
    return Path("results") / f"{start}-{'-'.join(experiment.variants)[:40]}-{key}"
