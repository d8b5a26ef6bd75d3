"""Experiment folders made up from a known truth, with the very files a real one has."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from dpobench.artifacts import scores
from dpobench.artifacts.files import MANIFEST, Manifest, write_json
from dpobench.artifacts.records import (
    Checks,
    ExperimentRecord,
    LeftOut,
    PlannedRun,
    PlanRecord,
    Provenance,
    RecipeRecord,
    RunRecord,
)
from dpobench.artifacts.scores import Metric, ScoreSettings
from dpobench.report.write import write_report
from dpobench.training.run import HARNESS

METRICS = {
    "winrate": {"win_rate": Metric("share", "higher", "headline", "win-rate"), "reward": Metric("points", "higher")},
    "kl": {
        "kl": Metric("nats per sequence", "none", "distance", "KL to the reference"),
        "kl_per_token": Metric("nats per token", "none"),
    },
    "benchmarks": {"acc": Metric("share", "higher", "benchmark", "accuracy"), "chance": Metric("share", "none")},
    "preference": {
        "accuracy": Metric("share", "higher", "preference", "held-out accuracy"),
        "margin": Metric("nats", "higher"),
        "chosen_shift": Metric("nats", "none"),
        "rejected_shift": Metric("nats", "none"),
    },
    "samples": {"length": Metric("tokens", "none", "length", "length"), "ended": Metric("share", "higher")},
}
TASKS = {"facts": 120, "steering": 80, "grammar": 100}
CHANCE = {"facts": 0.25, "steering": 0.5, "grammar": 0.5}


@dataclass
class World:
    """What is true in a made-up experiment."""

    variants: tuple[str, ...] = ("dpo", "ipo", "cdpo")
    betas: tuple[float, ...] = (0.03, 0.1, 0.3)
    seeds: tuple[int, ...] = (0, 1, 2)
    advantage: dict[str, float] = field(default_factory=dict)
    seed_sd: float = 0.01
    prompts: int = 512
    judge: bool = True
    diverged: tuple[tuple[str, float, int], ...] = ()
    name: str = "made-up"
    text: str = "The cake was very pleasant. I liked the tables. I give it four stars."
    reason: str = "step 17: loss is not finite (batch 17, rows 3, 8)"


def seeded(*parts: Any) -> np.random.Generator:
    return np.random.default_rng(int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "little"))


def prompt_ids(world: World) -> list[str]:
    return [hashlib.sha256(f"prompt{i}".encode()).hexdigest()[:16] for i in range(world.prompts)]


def score_frames(world: World, variant: str, beta: float, seed: int) -> dict[str, pd.DataFrame]:
    """Scores of one run; variant "reference" is the start of all."""
    start = variant == "reference"
    ids, rng = prompt_ids(world), seeded(variant, beta, seed)
    shared = seeded("prompts").normal(0, 0.15, len(ids))
    far = 0.0 if start else 0.6 / beta
    middle = world.betas[len(world.betas) // 2]
    gain = 0.5 if start else 0.70 + world.advantage.get(variant, 0.0) - 0.05 * np.log(beta / middle) ** 2
    chance = np.clip(gain + shared + (0 if start else rng.normal(0, world.seed_sd)), 0.02, 0.98)
    win = np.full(len(ids), 0.5) if start else np.where(rng.random(len(ids)) < 0.06, 0.5, rng.random(len(ids)) < chance)
    kl = far * rng.gamma(3.0, 1 / 3, len(ids))
    margin = np.zeros(len(ids)) if start else rng.normal(2.5 * np.sqrt(far), 3 * np.sqrt(far), len(ids))
    base_length = seeded("length").integers(14, 40, len(ids))
    length = base_length if start else np.maximum(3, base_length + rng.normal(1.2 * far, 5, len(ids)).round())
    frames = {
        "kl": pd.concat([scores.score_rows(ids, "kl", kl), scores.score_rows(ids, "kl_per_token", kl / length)]),
        "preference": pd.concat(
            [
                scores.score_rows(ids, "accuracy", np.where(margin == 0, 0.5, margin > 0)),
                scores.score_rows(ids, "margin", margin),
                scores.score_rows(ids, "chosen_shift", -0.3 * far + 0.5 * margin),
                scores.score_rows(ids, "rejected_shift", -0.3 * far - 0.5 * margin),
            ]
        ),
        "samples": pd.concat(
            [scores.score_rows(ids, "length", length), scores.score_rows(ids, "ended", rng.random(len(ids)) < 0.97)]
        ),
        "benchmarks": pd.concat([task_rows(world, start, task, n, far, rng) for task, n in TASKS.items()]),
    }
    if world.judge:
        reward = rng.normal(gain, 1, len(ids))
        frames["winrate"] = pd.concat(
            [scores.score_rows(ids, "win_rate", win, group="reference"), scores.score_rows(ids, "reward", reward)]
        )
    return {name: frame.reset_index(drop=True) for name, frame in frames.items()}


def task_rows(world: World, start: bool, task: str, n: int, far: float, rng: np.random.Generator) -> pd.DataFrame:
    base = (seeded("task", task).random(n) < 0.85).astype(float)
    lost = rng.random(n) < (0.02 * far if task == "steering" and not start else 0.0)
    documents = [f"{task}-{i}" for i in range(n)]
    accuracy = scores.score_rows(documents, "acc", np.where(lost, 0.0, base), group=task)
    return pd.concat([accuracy, scores.score_rows(documents, "chance", np.full(n, CHANCE[task]), group=task)])


def write_scored(folder: Path, world: World, variant: str, beta: float, seed: int) -> None:
    for evaluator, frame in score_frames(world, variant, beta, seed).items():
        scores.write(folder, evaluator, frame, METRICS[evaluator], ScoreSettings(seed=0))
    ids = prompt_ids(world)
    texts = [world.text if i % 2 else f"{world.text} Said by {variant}." for i in range(len(ids))]
    table = {"prompt": ids, "draw": 0, "text": texts, "token_ids": [[1, 2]] * len(ids), "ended": True}
    pd.DataFrame(table).to_parquet(folder / "samples.parquet", index=False)


def log_rows(variant: str, beta: float, seed: int, steps: int = 64) -> str:
    rng = seeded("log", variant, beta, seed)
    lines = []
    for step in range(steps):
        done, noise = step / steps, rng.normal(0, 1)
        margin = 4 * done / beta**0.5 + noise * 0.4
        row = {
            "step": step,
            "loss": 0.69 * np.exp(-1.5 * done) + 0.02 * noise,
            "margin": margin,
            "accuracy": 0.5 + 0.3 * done,
        }
        row |= {"chosen_logp": -40 - 4 * done, "rejected_logp": -42 - 9 * done, "chosen_logratio": -4 * done}
        row |= {
            "rejected_logratio": -9 * done,
            "gradient_norm": 0.8 + abs(noise),
            "learning_rate": 5e-4,
            "tokens_per_s": 9000.0,
        }
        lines.append(json.dumps(row))
    return "\n".join(lines) + "\n"


def fabricate(folder: Path, world: World) -> Path:
    """Write a whole experiment.

    Returns: its folder.
    """
    recipe = RecipeRecord(learning_rate=5e-4, batch=32, epochs=1.0, clip=1.0, precision="float32")
    runs = []
    for variant in world.variants:
        for beta in world.betas:
            for seed in world.seeds:
                identity = f"{variant}-{hashlib.sha256(f'{variant}{beta}{seed}'.encode()).hexdigest()[:12]}"
                loss = {"variant": variant, "params": {"beta": beta}, "strength": "beta", "beta": beta, "unit": "nat"}
                shared = {"learning_rate": 5e-4, "recipe": recipe, "harness": HARNESS}
                runs.append(PlannedRun(id=identity, seed=seed, **loss, **shared))
    for run in runs:
        write_run(folder / "runs" / run.id, world, run)
    reference = folder / "reference" / "0123456789ab"
    write_scored(reference, world, "reference", 1.0, 0)
    question = "How was your Friday at the Little Comet?"
    asked = [
        {"id": p, "messages": [{"role": "user", "content": question}], "token_ids": [1], "chosen": world.text}
        for p in prompt_ids(world)
    ]
    (reference / "prompts.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in asked))
    ExperimentRecord(name=world.name, control=world.variants[0], seeds=world.seeds).write(folder)
    left_out = () if world.judge else (LeftOut(evaluator="winrate", why="no judge is named"),)
    counts = {"read": 2048, "identical sides": 12, "contradicting": 7, "flipped": {"asked": 0.15, "measured": 0.1494}}
    PlanRecord(runs=tuple(runs), left_out=left_out, data=counts, reference="0123456789ab").write(folder)
    return folder


def write_run(folder: Path, world: World, run: PlannedRun) -> None:
    beta = float(run.params["beta"])
    broken = (run.variant, beta, run.seed) in world.diverged
    RunRecord(
        **dict(run),
        status="diverged" if broken else "done",
        reason=world.reason if broken else None,
        seconds={"train": 8.5, "sample": 1.2, "evaluate": 2.5},
        tokens=76_000,
        steps=64,
        flags=("non-finite",) if broken else (),
        checks=Checks(start_loss=0.693147, start_declared=0.693147, start_margin=0.0, reload_max_difference=0.0),
        provenance=Provenance(commit="abc1234", dirty=False, versions={"torch": "2.13.0"}, data_hash="d0", threads=1),
    ).write(folder)
    (folder / "log.jsonl").write_text(log_rows(run.variant, beta, run.seed, 17 if broken else 64))
    if not broken:
        write_scored(folder, world, run.variant, beta, run.seed)
        write_json(folder / MANIFEST, Manifest(files={}).model_dump())


@pytest.fixture(scope="session")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes an experiment folder from the fields of `World`."""
    return lambda **fields: fabricate(tmp_path_factory.mktemp("experiment"), World(**fields))


@pytest.fixture(scope="session")
def planted(built_once: Callable[..., Path]) -> Path:
    """Three seeds; the second variant is truly better by 0.12; one run diverged. Read by several files, changed by none."""
    world = World(advantage={"ipo": 0.12}, diverged=(("cdpo", 0.03, 1),))
    return built_once("planted", lambda folder: fabricate(folder, world))


@pytest.fixture(scope="session")
def planted_report(built_once: Callable[..., Path], planted: Path) -> Path:
    """The same with its report."""
    built_once("planted-report", lambda _: write_report(planted))
    return planted


@pytest.fixture(scope="session")
def equal(make: Callable[..., Path]) -> Path:
    """Three seeds, no difference."""
    return make(betas=(0.1,))
