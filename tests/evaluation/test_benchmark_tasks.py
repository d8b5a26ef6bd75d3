"""What is wrong with a task is an error before anything is computed; what is right is read from the files named."""

import json

import pytest

from dpobench import UserError
from dpobench.evaluation import benchmark_tasks
from dpobench.evaluation.benchmark_tasks import check_tasks, definitions, filled, tasks_key

PICK = """
task: pick
tag: letters
dataset_path: json
dataset_kwargs: {data_files: {test: "%s"}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: ["a", "b"]
doc_to_target: answer
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "tasks"
    place.mkdir()
    (tmp_path / "docs.jsonl").write_text(json.dumps({"question": "c d", "answer": 0}) + "\n")
    (place / "pick.yaml").write_text(PICK % (tmp_path / "docs.jsonl"))
    (place / "choose.yaml").write_text("include: pick.yaml\ntask: choose\nnum_fewshot: 1\n")
    (place / "both.yaml").write_text("group: both\ntask: [pick, {task: choose}]\n")
    return place


@pytest.fixture
def nothing_stock(monkeypatch):
    monkeypatch.setattr(benchmark_tasks, "stock_names", lambda: frozenset({"piqa", "mmlu"}))


def test_a_name_is_a_task_a_group_or_a_tag(folder, nothing_stock):
    known = definitions([folder])
    tasks_of = {
        name: sorted(one.name for one in benchmark_tasks.leaves(name, known))
        for name in ("pick", "both", "letters", "mmlu")
    }
    assert tasks_of == {"pick": ["pick"], "both": ["choose", "pick"], "letters": ["choose", "pick"], "mmlu": []}
    check_tasks(["pick", "both", "letters", "mmlu"], [folder])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pik", r"no task is called 'pik' in .*tasks or in lm-eval\. Nearest: 'pick' \(local\)"),
        ("piqua", r"'piqa_local' \(local\); 'piqa' \(lm-eval's own, data from the hub\)"),
        ("grammer", "'grammar'"),
        ("quite_another_thing", r"no task is called 'quite_another_thing' in .* or in lm-eval\.$"),
    ],
)
def test_a_mistyped_name_is_shown_its_nearest(folder, nothing_stock, name, message):
    with pytest.raises(UserError, match=message):
        check_tasks([name], [folder], later=["grammar", "facts"])


def test_a_name_that_comes_later_is_taken_on_trust(nothing_stock):
    check_tasks(["grammar"], later=["grammar"])


def test_a_file_that_cannot_be_read_as_a_definition_is_named(folder, nothing_stock):
    (folder / "torn.yaml").write_text("task: [")
    check_tasks(["pick"], [folder])
    with pytest.raises(UserError, match=r"torn\.yaml is there, but it holds no task of that name"):
        check_tasks(["torn"], [folder])


def test_a_variable_without_a_value_a_missing_file_and_a_mistyped_metric_are_named(folder, monkeypatch, tmp_path):
    file = folder / "pick.yaml"
    monkeypatch.delenv("LETTERS", raising=False)
    file.write_text("# ${UNSAID} in a comment asks for nothing\n" + PICK % "${LETTERS}/docs.jsonl")
    with pytest.raises(
        UserError, match=r"task 'choose' reads \$\{LETTERS\}, which is not set; .*export LETTERS=FOLDER"
    ):
        check_tasks(["choose"], [folder])
    monkeypatch.setenv("LETTERS", str(tmp_path))
    check_tasks(["pick", "choose"], [folder])
    monkeypatch.setenv("LETTERS", str(tmp_path / "elsewhere"))
    with pytest.raises(
        UserError, match=r"task 'pick' reads .*elsewhere/docs\.jsonl, which is not there; mend the path in .*pick\.yaml"
    ):
        check_tasks(["both"], [folder])
    file.write_text((PICK % (tmp_path / "docs.jsonl")).replace("metric: acc,", "metric: acccc,"))
    with pytest.raises(UserError, match=r"task '(pick|choose)' asks for metric 'acccc'.*did you mean 'acc'"):
        check_tasks(["letters"], [folder])


def test_a_folder_that_is_not_there_is_named(folder):
    with pytest.raises(UserError, match="elsewhere: no such folder"):
        check_tasks(["pick"], [folder / "elsewhere"])


def test_a_changed_data_file_is_another_task_and_a_moved_one_is_not(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("LETTERS", str(tmp_path))
    (folder / "pick.yaml").write_text(PICK % "${LETTERS}/docs.jsonl")
    before = tasks_key(["both"], [folder])
    assert tasks_key(["both"], [folder]) == before
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "functions.pyc").write_text("left by whoever imported it")
    assert tasks_key(["both"], [folder]) == before
    (tmp_path / "moved").mkdir()
    (tmp_path / "docs.jsonl").rename(tmp_path / "moved" / "docs.jsonl")
    monkeypatch.setenv("LETTERS", str(tmp_path / "moved"))
    assert tasks_key(["both"], [folder]) == before
    (tmp_path / "moved" / "docs.jsonl").write_text(json.dumps({"question": "c d", "answer": 1}) + "\n")
    changed = tasks_key(["both"], [folder])
    assert changed != before
    (folder / "pick.yaml").write_text((folder / "pick.yaml").read_text().replace('["a", "b"]', '["a", "c"]'))
    assert tasks_key(["both"], [folder]) not in (before, changed)
    assert tasks_key(["pick"], [folder]) != tasks_key(["choose"], [folder])


def test_a_folder_is_copied_only_where_a_variable_is_filled_in(folder, monkeypatch, tmp_path):
    with filled([folder]) as (place,):
        assert place == str(folder)
    (folder / "functions.py").write_text("")
    (folder / "pick.yaml").write_text(PICK % "${HERE}/../docs.jsonl" + 'description: "${NOBODY}"\n')
    with filled([folder]) as (place,):
        text = (tmp_path / place / "pick.yaml").read_text()
        assert f"{folder}/../docs.jsonl" in text
        assert "${NOBODY}" in text
        assert (tmp_path / place / "functions.py").resolve() == folder / "functions.py"
    assert not (tmp_path / place).exists()


def test_lm_evals_names_are_known_without_reading_its_definitions_whole():
    known = benchmark_tasks.stock_names()
    assert {"piqa", "gsm8k", "mmlu", "mmlu_anatomy", "ai2_arc", "math_word_problems", "blimp_npi_present_1"} <= known
    assert "piqa_local" not in known
