"""The sweep that both sides do, and the command lines with which they do it."""

import os
import resource
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dpobench.artifacts.files import cache_folder, write_json
from dpobench.errors import DpobenchError
from dpobench.evaluation.settings import Evaluation
from dpobench.experiment import options
from dpobench.experiment.config import parse
from dpobench.training.run import Recipe

SPEC, TRL_SCRIPTS = Path(__file__).with_name("sweep_spec.toml"), Path(__file__).with_name("trl_scripts.py")
SEED = 0


@dataclass(frozen=True)
class GridPoint:
    """One run of the grid.

    Args:
        variant: name of the loss.
        beta: its regularisation strength.
        trl: fields of TRL's `DPOConfig` for the same loss.
    """

    variant: str
    beta: float
    trl: Mapping[str, object]

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"{self.variant}-{self.beta:g}"


@dataclass(frozen=True)
class SweepSpec:
    """The sweep that both sides do.

    Args:
        preset: name of the embedded default.
        longer: name of another, whose runs are as long as the demo's.
        points: the grid.
        further: values of beta for the first variant that come later.
        micro_batches: TRL's batches per device that are tried.
        recipe: how each point is trained.
        evaluation: how it is scored.
    """

    preset: str
    longer: str
    points: tuple[GridPoint, ...]
    further: tuple[float, ...]
    micro_batches: tuple[int, ...]
    recipe: Recipe
    evaluation: Evaluation

    def grids(self, further: int = 0) -> dict[str, list[float]]:
        """Values of beta by variant.

        Args:
            further: number of the later values that the first variant has, too.
        """
        betas: dict[str, list[float]] = {}
        for point in self.points:
            betas.setdefault(point.variant, []).append(point.beta)
        betas[self.points[0].variant] += self.further[:further]
        return betas


def read_spec(points: int | None = None) -> SweepSpec:
    """Read the sweep from its file.

    Args:
        points: number of grid points, the first ones; None for all.
    """
    content = tomllib.loads(SPEC.read_text(encoding="utf-8"))
    grid = [
        GridPoint(variant["name"], beta, variant["trl"]) for variant in content["variants"] for beta in variant["betas"]
    ]
    preset = parse(options.preset(content["preset"]))
    recipe, evaluation = preset.recipe, preset.evaluation
    return SweepSpec(
        content["preset"],
        content["longer"],
        tuple(grid[:points]),
        tuple(content["further"]),
        tuple(batch for batch in content["micro_batches"] if recipe.batch % batch == 0),
        recipe,
        evaluation,
    )


def our_command(spec: SweepSpec, out: Path, further: int = 0) -> list[str]:
    """The command line of our side: one run at a time, one thread.

    Args:
        spec: the sweep.
        out: the experiment's folder.
        further: number of the later values of beta that the first variant has, too.
    """
    grids = spec.grids(further)
    betas = [part for name, values in grids.items() for part in ("--beta-grid", f"{name}={comma_separated(values)}")]
    limits = ["--seeds", str(SEED), "--device", "cpu", "--workers", "1", "--threads", "1", "--out", str(out)]
    run = [sys.executable, "-m", "dpobench", "run", "--preset", spec.preset, "--variants", ",".join(grids)]
    return [*run, *betas, *limits]


def comma_separated(values: Sequence[float]) -> str:
    """Values as the option `--beta-grid` takes them.

    Example:
        >>> comma_separated([0.05, 1.0])
        '0.05,1'
    """
    return ",".join(f"{value:g}" for value in values)


def script_command(part: str, arguments: Mapping[str, object], file: Path) -> list[str]:
    """The command line of a script of the other side.

    Args:
        part: "train" or "sample".
        arguments: of the script.
        file: to which they are written as JSON.
    """
    write_json(file, dict(arguments))
    # Without -P the folder of the script, which is ours, would be searched for imports.
    return [sys.executable, "-P", str(TRL_SCRIPTS), part, str(file)]


def lm_eval_command(checkpoint: Path, world: Path, spec: SweepSpec, target: Path) -> list[str]:
    """lm-eval's command line on a checkpoint.

    Args:
        checkpoint: folder of the model.
        world: folder of the embedded default, with the tasks.
        spec: the sweep.
        target: where lm-eval writes its results.
    """
    arguments = {
        "--model": "hf",
        "--model_args": f"pretrained={checkpoint},dtype=float32",
        "--tasks": ",".join(spec.evaluation.tasks),
        "--include_path": world / "tasks",
        "--batch_size": 16,
        "--device": "cpu",
        "--output_path": target,
    }
    return [sys.executable, "-P", "-m", "lm_eval", "run", *(str(part) for pair in arguments.items() for part in pair)]


def configuration(point: GridPoint, recipe: Recipe, steps: int, micro_batch: int) -> dict[str, object]:
    """Fields of TRL's `DPOConfig` that differ from its defaults.

    Args:
        point: of the grid.
        recipe: how it is trained.
        steps: number of optimizer steps.
        micro_batch: batch per device.
    """
    return {
        **point.trl,
        "beta": point.beta,
        "per_device_train_batch_size": micro_batch,
        "gradient_accumulation_steps": recipe.batch // micro_batch,
        "max_steps": steps,
        "max_grad_norm": recipe.clip,
        "max_length": recipe.max_tokens,
        "precompute_ref_log_probs": True,
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": True,
        "train_sampling_strategy": "sequential",
        "save_strategy": "no",
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
    }


def cpu_seconds(command: Sequence[str], log: Path) -> float:
    """Run a command with one thread and without the network.

    Args:
        command: the command line.
        log: file of its output.

    Returns: CPU seconds of it and its children, imports included.

    Raises:
        DpobenchError: it failed; the message has its last line of output.
    """
    limits = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    caches = {
        "DPOBENCH_CACHE": str(cache_folder().resolve()),
        "HF_DATASETS_CACHE": str(log.parent.resolve() / "datasets"),
    }
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with log.open("wb") as stream:
        ended = subprocess.run(
            list(command), stdout=stream, stderr=subprocess.STDOUT, env=dict(os.environ) | limits | caches, check=False
        )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if ended.returncode:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["none"]
        raise DpobenchError(
            f"{' '.join(command[:5])} ... ended with status {ended.returncode}; its last line of output: {lines[-1]}"
        )
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
