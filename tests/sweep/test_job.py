"""One run: what is there stays until something better takes its place."""

import pytest

from dpobench.artifacts.files import seal, write_bytes
from dpobench.artifacts.records import RunRecord
from dpobench.evaluation.settings import Evaluation
from dpobench.losses.registry import variants
from dpobench.sweep import job
from dpobench.sweep.job import Job
from tests.training import tiny


@pytest.fixture
def finished(tmp_path):
    """A run that was trained in eight steps and scored, of which two checkpoints are asked for now."""
    run = tiny.run_of(variants.get("dpo").bind(beta=0.1))
    planned = Job(
        run=run, out=tmp_path, model=tmp_path, shared=tmp_path, heldout=tmp_path, evaluation=Evaluation(checkpoints=2)
    )
    for name in ("checkpoint/model.safetensors", "scores/kl.parquet", "samples.parquet"):
        write_bytes(planned.folder / name, name.encode())
    RunRecord(**dict(run.describe()), status="done", steps=8).write(planned.folder)
    seal(planned.folder)
    return planned


def test_a_training_done_again_that_fails_leaves_checkpoint_and_scores(finished, monkeypatch):
    def fail(*given, **more):
        raise RuntimeError("no memory left")

    monkeypatch.setattr(job, "training_pairs", lambda job: ([None] * 64, {}))
    monkeypatch.setattr(job, "train", fail)
    assert job.execute(finished) == "unscored"
    assert "no memory left" in RunRecord.read(finished.folder).reason
    for name in ("checkpoint/model.safetensors", "scores/kl.parquet", "samples.parquet"):
        assert (finished.folder / name).read_bytes() == name.encode()


def test_a_training_is_whole_with_the_checkpoints_asked_for_and_not_without(finished):
    assert not job.is_trained(finished)
    # Eight steps cut into three equal parts.
    for step in (3, 5):
        (finished.folder / "within" / str(step) / "checkpoint").mkdir(parents=True)
    assert job.is_trained(finished)
    assert job.is_trained(finished.model_copy(update={"evaluation": Evaluation()}))
