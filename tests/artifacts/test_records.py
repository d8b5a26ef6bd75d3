"""Records: what is written is read again, and nothing else is."""

import json

import pytest

from dpobench.artifacts.files import FORMAT, read_json, seal, verify, write_json
from dpobench.artifacts.records import (
    Condition,
    ExperimentRecord,
    PlannedCondition,
    PlannedRun,
    PlanRecord,
    RunRecord,
    SamplesRecord,
)
from dpobench.errors import Damaged, UserError

RUN = RunRecord(
    id="dpo-1", variant="dpo", seed=3, status="done", params={"beta": 1}, beta=1, condition=Condition(label_noise=0.3)
)
RECORDS = (
    RUN,
    PlanRecord(runs=(PlannedRun(id="dpo-1", variant="dpo", seed=3),), training="t"),
    ExperimentRecord(name="mine", grid={"dpo": {"beta": [0.1]}}),
    SamplesRecord(heldout="h", seed=3),
)


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.FILE)
def test_what_was_written_is_read_again(record, tmp_path):
    assert not record.lies_in(tmp_path)
    record.write(tmp_path)
    assert record.lies_in(tmp_path)
    assert type(record).read(tmp_path) == record


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.FILE)
@pytest.mark.parametrize("written", [1, FORMAT + 1])
def test_a_record_of_another_format_is_refused_with_both_numbers(record, written, tmp_path):
    content = json.loads(record.model_dump_json()) | {"format": written}
    # The first format did not say that it is the first.
    write_json(tmp_path / record.FILE, {k: v for k, v in content.items() if k != "format" or written > 1})
    expected = (
        f"{tmp_path}: written in format {written}, this dpobench reads format {FORMAT}; run again into another --out"
    )
    with pytest.raises(UserError) as error:
        type(record).read(tmp_path)
    assert expected in str(error.value)


def test_a_sealed_folder_of_another_format_is_refused(tmp_path):
    (tmp_path / "file").write_text("content")
    seal(tmp_path)
    verify(tmp_path)
    write_json(tmp_path / "DONE", {"files": read_json(tmp_path / "DONE")["files"]})
    with pytest.raises(UserError, match=f"written in format 1, this dpobench reads format {FORMAT}"):
        verify(tmp_path)


@pytest.mark.parametrize(("field", "value"), [("seed", "three"), ("status", "finished"), ("speed", 1)])
def test_a_value_that_does_not_belong_is_damage_and_is_named(field, value, tmp_path):
    write_json(tmp_path / "run.json", json.loads(RUN.model_dump_json()) | {field: value})
    with pytest.raises(Damaged, match=rf"run\.json is damaged \({field}: "):
        RunRecord.read(tmp_path)


def test_numbers_keep_their_kind_so_that_keys_made_of_them_stay(tmp_path):
    RUN.updated(params={"beta": 1, "gamma": 1.0}, beta=1.0).write(tmp_path)
    read = RunRecord.read(tmp_path)
    assert (type(read.params["beta"]), type(read.params["gamma"]), type(read.beta)) == (int, float, float)


def test_a_condition_is_written_as_what_it_changes_and_nothing_else(tmp_path):
    RUN.write(tmp_path)
    assert read_json(tmp_path / "run.json")["condition"] == {"label_noise": 0.3}
    RUN.updated(condition=Condition()).write(tmp_path)
    assert read_json(tmp_path / "run.json")["condition"] == {}
    assert RunRecord.read(tmp_path).condition.is_main


def test_a_condition_takes_the_place_of_what_the_main_experiment_shares():
    noisy = Condition(label_noise=0.3)
    shared = PlannedCondition(condition=noisy, reference="weaker")
    plan = PlanRecord(runs=(), conditions=(shared,), reference="whole", training="t")
    assert (plan.under(noisy).reference, plan.under(noisy).training) == ("weaker", "t")
    assert plan.under(Condition()) == plan
