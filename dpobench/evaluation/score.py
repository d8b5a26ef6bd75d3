"""Scoring a checkpoint: draw answers once, then run every evaluator on them."""

import random
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TypeVar, cast

import numpy as np
import pandas as pd
import torch

from dpobench.artifacts import scores
from dpobench.artifacts.files import digest, file_hash, write_bytes
from dpobench.artifacts.records import PoolRecord, SamplesRecord
from dpobench.data.prompts import PROMPTS, Prompt, read_prompts
from dpobench.data.tokens import read_pairs
from dpobench.evaluation.heldout import ComputeOnce, HeldOut, OnPolicySamples
from dpobench.evaluation.objectives import objective_inputs
from dpobench.evaluation.plan import (
    HELDOUT,
    ON_POLICY,
    ON_POLICY_SAMPLES,
    POOL,
    SAMPLES,
    ScoringPlan,
    content_hashes,
    scores_reference_only,
)
from dpobench.evaluation.settings import Evaluation
from dpobench.models.checkpoint import Checkpoint, model_hash
from dpobench.models.generate import Sampling, sample

T = TypeVar("T")


def score(
    checkpoint: Checkpoint,
    folder: Path,
    heldout: Path,
    settings: Evaluation,
    planned: ScoringPlan,
    *,
    seed: int = 0,
    progress: Callable[[str], None] = lambda name: None,
) -> None:
    """Write a checkpoint's samples and scores into its folder; what is there under the same settings stays as it is.

    Args:
        checkpoint: what to score.
        folder: its run folder, or the held-out folder itself for the reference.
        heldout: folder with prompts, held-out pairs and the reference's samples.
        settings: sampling and limits.
        planned: evaluators and judge.
        seed: the run's seed, mixed into the draws.
        progress: called with the name of each part as it begins.

    Raises:
        UserError: an evaluator or its judge cannot work with these settings.
        DpobenchError: an evaluator returned something else than scores, or its judge something else than verdicts.
    """
    drawn_for = SamplesRecord(heldout=planned.heldout, seed=seed)
    if not (SamplesRecord.lies_in(folder) and SamplesRecord.read(folder) == drawn_for):
        for name in (SAMPLES, ON_POLICY_SAMPLES):
            (folder / name).unlink(missing_ok=True)
        drawn_for.write(folder)
    prompts, sampling = read_prompts(heldout), settings.sampling

    def draw(file: str, part: str, how: Sampling, stream: int) -> None:
        progress(part)
        with random_state(0):
            table = sample(checkpoint.policy, checkpoint.tokenizer, prompts, how, stream)
        write_bytes(folder / file, table.to_parquet(index=False))

    if not (folder / SAMPLES).is_file():
        draw(SAMPLES, "sampling", sampling, seed)
    wants_on_policy = any(ON_POLICY in plugin.spec.needs for plugin, _ in planned.chosen)
    if wants_on_policy and not sampling.is_policy and not (folder / ON_POLICY_SAMPLES).is_file():
        untempered = replace(sampling, temperature=1.0, top_p=1.0, top_k=0)
        draw(ON_POLICY_SAMPLES, "sampling at temperature 1", untempered, seed)
    if folder == heldout:
        pool = PoolRecord(heldout=planned.heldout, seed=seed, pool=settings.pool)
        current = PoolRecord.lies_in(folder) and PoolRecord.read(folder) == pool
        if not current or (folder / POOL).is_file() != (settings.pool > 0):
            (folder / POOL).unlink(missing_ok=True)
            if settings.pool > 0:
                # From another stream of random numbers than the reference's samples.
                draw(POOL, "further answers", replace(sampling, draws=settings.pool), seed + 1)
            pool.write(folder)
    held_out = _held_out(folder, heldout, prompts, settings, planned, shared_cache(checkpoint, heldout, planned))
    for plugin, arguments in planned.chosen:
        if scores_reference_only(plugin) and folder != heldout:
            continue
        score_settings = planned.settings_of(plugin, arguments, seed)
        if plugin.name in scores.present(folder) and scores.settings(folder, plugin.name) == score_settings:
            continue
        progress(plugin.name)
        with random_state(seed):
            frame = plugin.function(checkpoint, held_out, **arguments)
        scores.check(frame, plugin.spec.metrics, plugin.name)
        scores.write(folder, plugin.name, frame, plugin.spec.metrics, score_settings)


def shared_cache(checkpoint: Checkpoint, heldout: Path, planned: ScoringPlan) -> ComputeOnce:
    """The cache for all checkpoints that this process scores on the same inputs, in the same arithmetic.

    Args:
        checkpoint: what is scored; its reference, device and precision count, its policy does not.
        heldout: folder of the held-out inputs; the content of its files counts, its place does not.
        planned: the judge.
    """
    files = [
        file for name in (PROMPTS, HELDOUT, SAMPLES, ON_POLICY_SAMPLES, POOL) if (file := heldout / name).is_file()
    ]
    content = [(file.name, file_hash(file)) for file in files]
    reference = checkpoint.reference_hash or model_hash(checkpoint.reference_folder)
    arithmetic = (checkpoint.device, checkpoint.precision, torch.get_num_threads())
    cache = _cache(digest(content, reference, arithmetic, planned.needs.get("judge")))

    def compute_once(key: Hashable, compute: Callable[[], T], /) -> T:
        if key not in cache:
            # The seed of no run: a cached value must not depend on which run came first.
            with random_state(0):
                cache[key] = compute()
        return cast(T, cache[key])

    return compute_once


@lru_cache(maxsize=1)
def _cache(inputs: str) -> dict[Hashable, object]:
    """Values computed on inputs of this content; those of the last inputs only."""
    return {}


def _held_out(
    folder: Path,
    heldout: Path,
    prompts: Sequence[Prompt],
    settings: Evaluation,
    planned: ScoringPlan,
    compute_once: ComputeOnce,
) -> HeldOut:
    """What the evaluators get."""
    file = heldout / HELDOUT
    samples = pd.read_parquet(folder / SAMPLES)
    reference = samples if folder == heldout else pd.read_parquet(heldout / SAMPLES)

    def write_table(name: str, frame: pd.DataFrame) -> None:
        write_bytes(folder / f"{name}.parquet", frame.to_parquet(index=False))

    held_out = HeldOut(
        prompts=prompts,
        samples=samples,
        reference_samples=reference,
        pairs=compute_once(file.name, lambda: read_pairs(file)) if file.is_file() else [],
        tasks=settings.tasks,
        task_folders=tuple(Path(name) for name in settings.task_folders),
        sampling=settings.sampling,
        compute_once=compute_once,
        opponents=planned.opponents,
        objectives=objective_inputs(heldout, planned.objectives, settings, content_hashes, compute_once),
        write_table=write_table,
    )
    if not settings.sampling.is_policy and (folder / ON_POLICY_SAMPLES).is_file():
        tables = OnPolicySamples(*(pd.read_parquet(place / ON_POLICY_SAMPLES) for place in (folder, heldout)))
        held_out = replace(held_out, on_policy=tables)
    if (heldout / POOL).is_file():
        held_out = replace(held_out, pool=compute_once(POOL, lambda: pd.read_parquet(heldout / POOL)))
    if planned.judge is None:
        return held_out
    judge = partial(planned.judge.plugin.function, **planned.judge.settings)
    pointwise = planned.judge.plugin.spec.pointwise
    return replace(held_out, judge=judge) if pointwise else replace(held_out, pairwise=judge)


@contextmanager
def random_state(seed: int) -> Iterator[None]:
    """Seed every generator for a block and put the old states back."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])
