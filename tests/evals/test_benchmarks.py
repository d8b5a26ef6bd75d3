"""Our rows are those of lm-eval, document by document."""

import dataclasses
import json
import logging
import math
import random
import shutil
import warnings

import datasets
import numpy as np
import pytest
import torch
from lm_eval.tasks import TaskManager

from dpobench import UserError
from dpobench.artifacts.scores import check
from dpobench.evals import _lm_eval
from dpobench.evals import benchmarks as module
from dpobench.evals.benchmarks import benchmarks
from dpobench.evaluation.spec import EvaluatorSpec
from dpobench.models.checkpoint import Checkpoint
from dpobench.plugins.registry import spec_of

CHOICE = """
task: pick
dataset_path: json
dataset_kwargs: {data_files: {test: %s}}
test_split: test
fewshot_split: test
num_fewshot: 1
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: options
doc_to_target: answer
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
"""
WRITE = """
task: write
dataset_path: json
dataset_kwargs: {data_files: {test: %s}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{options[0]}}"
generation_kwargs: {until: ["z"], max_gen_toks: 4}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
filter_list:
  - {name: first-word, filter: [{function: regex, regex_pattern: "^(.)"}, {function: take_first}]}
  - {name: whole, filter: [{function: take_first}]}
"""
READ = """
task: read
dataset_path: json
dataset_kwargs: {data_files: {test: %s}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}}"
metric_list:
  - {metric: word_perplexity, aggregation: weighted_perplexity, higher_is_better: false}
  - {metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}
"""


@pytest.fixture(scope="module")
def model_folder(tiny, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny.llama(28, seed=5, max_position_embeddings=48).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("DPOBENCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def tasks(tiny, tmp_path):
    """A folder with three tasks over twelve documents of two to four options."""
    chance, folder = random.Random(0), tmp_path / "tasks"
    folder.mkdir()
    words = lambda count: " ".join(chance.choices(tiny.WORDS, k=count))  # noqa: E731
    docs = []
    for number in range(12):
        options = [words(chance.randint(1, 3)) for _ in range(2 + number % 3)]
        docs.append({"question": words(chance.randint(3, 6)), "options": options, "answer": number % 2})
    return write_tasks(folder, docs)


def write_tasks(folder, docs):
    data = folder / "docs.jsonl"
    data.write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    for name, text in {"pick": CHOICE, "write": WRITE, "read": READ}.items():
        (folder / f"{name}.yaml").write_text(text % data)
    return folder


def held(tiny, folder, *names):
    return tiny.held_out_of(tiny.samples_of({"p": [[1]]}), tasks=names, task_folders=(folder,))


@pytest.fixture
def checkpoint(model_folder):
    return Checkpoint(model_folder, model_folder)


def by_lm_eval(model_folder, folder, names):
    from lm_eval import simple_evaluate

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return simple_evaluate(
            model="hf",
            model_args=f"pretrained={model_folder},dtype=float32",
            device="cpu",
            tasks=list(names),
            batch_size=16,
            task_manager=TaskManager(include_path=str(folder), include_defaults=False),
            bootstrap_iters=0,
        )


def test_every_document_scores_as_in_lm_eval_itself(checkpoint, model_folder, tasks, tiny):
    scores = benchmarks(checkpoint, held(tiny, tasks, "pick", "write", "read"))
    check(scores, spec_of(benchmarks, EvaluatorSpec).metrics, "benchmarks")
    theirs = by_lm_eval(model_folder, tasks, ("pick", "write", "read"))
    ours = {(row.group, row.metric, row.prompt): row.value for row in scores.itertuples()}
    for sample in theirs["samples"]["pick"]:
        for metric, name in (("acc", "acc"), ("acc_norm", "acc_norm"), ("exact_match", "exact_match,none")):
            assert ours.pop(("pick", name, f"pick/{sample['doc_id']}")) == sample[metric]
        assert ours.pop(("pick", "chance", f"pick/{sample['doc_id']}")) == 1 / len(sample["doc"]["options"])
    for sample in theirs["samples"]["write"]:
        name = {"first-word": "exact_match", "whole": "exact_match,whole"}[sample["filter"]]
        assert ours.pop(("write", name, f"write/{sample['doc_id']}")) == sample["exact_match"]
    for sample in theirs["samples"]["read"]:
        key = f"read/{sample['doc_id']}"
        logp, words = sample["word_perplexity"]
        assert ours.pop(("read", "word_perplexity", key)) == pytest.approx(math.exp(-logp / words), rel=1e-6)
        logp, size = sample["bits_per_byte"]
        assert ours.pop(("read", "bits_per_byte", key)) == pytest.approx(-logp / size / math.log(2), rel=1e-6)
    assert not ours
    accuracy = scores.loc[(scores["group"] == "pick") & (scores["metric"] == "acc"), "value"]
    assert set(accuracy) == {0, 1}
    assert accuracy.mean() == theirs["results"]["pick"]["acc,none"]


def test_random_numbers_logs_tokenizer_and_bars_are_left_as_they_were(checkpoint, tasks, tiny, capfd, caplog):
    random.seed(7)
    np.random.seed(7)
    torch.manual_seed(7)
    expected = random.random(), np.random.rand(), torch.rand(1)
    random.seed(7)
    np.random.seed(7)
    torch.manual_seed(7)
    level, bars = logging.getLogger("lm_eval").level, datasets.are_progress_bars_disabled()
    assert not checkpoint.policy.training, "loaded here, so that transformers' own bar is not counted"
    capfd.readouterr()
    benchmarks(checkpoint, held(tiny, tasks, "pick", "read"))
    assert capfd.readouterr() == ("", "")
    assert [record for record in caplog.records if record.name.startswith("lm_eval")] == []
    assert (random.random(), np.random.rand(), torch.rand(1)) == expected
    assert (logging.getLogger("lm_eval").level, datasets.are_progress_bars_disabled()) == (level, bars)
    assert checkpoint.tokenizer.pad_token is None


def test_the_batch_size_moves_no_verdict(checkpoint, tasks, tiny):
    first, second = (benchmarks(checkpoint, held(tiny, tasks, "pick"), batch_size=size) for size in (1, 16))
    assert first.equals(second)


def test_an_option_longer_than_the_context_is_named_before_the_run(checkpoint, tiny, tmp_path):
    docs = [{"question": "a b", "options": ["c", "d"], "answer": 0}] * 2
    docs.append({"question": "a b", "options": ["c", "d " * 60], "answer": 0})
    calls = []
    checkpoint.policy.register_forward_pre_hook(lambda *_: calls.append(1))
    with pytest.raises(UserError, match=r"task 'pick' document 2: an option of 60 tokens.*1 to 48\. Set .*limit to 2"):
        benchmarks(checkpoint, held(tiny, write_tasks(tmp_path, docs), "pick"))
    assert not calls


def test_an_answer_longer_than_the_context_is_named_before_the_run(checkpoint, tiny, tasks):
    (tasks / "write.yaml").write_text((tasks / "write.yaml").read_text().replace("max_gen_toks: 4", "max_gen_toks: 48"))
    with pytest.raises(
        UserError, match=r"task 'write': answers of up to 48 tokens.*context of 48; set .*max_gen_toks lower"
    ):
        benchmarks(checkpoint, held(tiny, tasks, "write"))
    assert len(benchmarks(checkpoint, held(tiny, tasks, "write"), max_gen_toks=3)) == 24


def test_a_context_that_lost_its_start_is_reported(checkpoint, tiny, tmp_path):
    docs = [{"question": "a b", "options": ["c", "d"], "answer": 0}] * 2
    docs.append({"question": "a " * 60, "options": ["c", "d"], "answer": 0})
    file = write_tasks(tmp_path, docs) / "pick.yaml"
    file.write_text(file.read_text().replace("num_fewshot: 1", ""))
    scores = benchmarks(checkpoint, held(tiny, tmp_path, "pick"))
    assert tiny.values(scores, "truncated") == [0, 0, 1]


def test_a_context_that_lost_its_start_scores_as_in_lm_eval_itself(checkpoint, model_folder, tiny, tmp_path):
    draw = random.Random(1)
    text = lambda count: " ".join(draw.choices(tiny.WORDS, k=count))  # noqa: E731
    # Around the context of 48 tokens, where one token more or less decides what the model reads.
    docs = [{"question": text(36 + n), "options": [text(3), text(1)], "answer": 0} for n in range(16)]
    file = write_tasks(tmp_path, docs) / "pick.yaml"
    file.write_text(file.read_text().replace("num_fewshot: 1", ""))
    theirs = by_lm_eval(model_folder, tmp_path, ["pick"])["samples"]["pick"]
    scored_names = []
    scored = _lm_eval.Model.loglikelihood
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(
            _lm_eval.Model, "loglikelihood", lambda *a, **k: scored_names.extend(scored(*a, **k)) or scored_names
        )
        benchmarks(checkpoint, held(tiny, tmp_path, "pick"))
    expected = [response for sample in theirs for response in sample["filtered_resps"]]
    assert [greedy for _, greedy in scored_names] == [greedy for _, greedy in expected]
    assert [logp for logp, _ in scored_names] == pytest.approx([logp for logp, _ in expected], abs=1e-4)


def test_lm_evals_index_is_read_only_for_names_that_are_not_local(checkpoint, tasks, tiny, monkeypatch):
    reads = []
    monkeypatch.setattr(
        _lm_eval, "stock_tasks", lambda: reads.append(1) or TaskManager(str(tasks), include_defaults=False)
    )
    benchmarks(checkpoint, held(tiny, tasks, "pick"))
    assert reads == []
    with pytest.raises(UserError, match=r"task 'piqa' cannot be loaded.*docs/benchmarks.md"):
        benchmarks(checkpoint, held(tiny, tasks, "piqa"))
    assert reads == [1]


def test_a_missing_folder_or_data_file_is_named(checkpoint, tasks, tiny):
    with pytest.raises(UserError, match="elsewhere: no such folder"):
        benchmarks(checkpoint, held(tiny, tasks / "elsewhere", "pick"))
    (tasks / "docs.jsonl").write_text("{")
    with pytest.raises(UserError, match="task 'pick' cannot be loaded"):
        benchmarks(checkpoint, held(tiny, tasks, "pick"))
    (tasks / "docs.jsonl").unlink()
    with pytest.raises(UserError, match=r"task 'pick' reads .*docs\.jsonl, which is not there"):
        benchmarks(checkpoint, held(tiny, tasks, "pick"))


def test_a_mistyped_metric_is_named_and_not_looked_up_on_the_hub(checkpoint, tasks, tiny):
    file = tasks / "pick.yaml"
    file.write_text(file.read_text().replace("metric: acc,", "metric: acccc,"))
    with pytest.raises(UserError, match=r"task 'pick' asks for metric 'acccc'.*did you mean 'acc'"):
        benchmarks(checkpoint, held(tiny, tasks, "pick"))


def test_the_first_documents_are_those_of_lm_evals_limit(checkpoint, tasks, tiny):
    every, first = (benchmarks(checkpoint, held(tiny, tasks, "pick", "write"), limit=limit) for limit in (0, 5))
    assert {int(key.partition("/")[2]) for key in first["prompt"]} == set(range(5))
    first_five = every["prompt"].str.partition("/")[2].astype(int) < 5
    both = every[first_five & (every["metric"] != "truncated")].reset_index(drop=True)
    assert first.equals(both)


def test_options_that_look_alike_to_the_model_are_reported(checkpoint, tiny, tmp_path):
    docs = [{"question": "a b", "options": ["c", "d"], "answer": 0}]
    # Words nobody knows: both options are the same tokens, and lm-eval takes the first.
    docs += [{"question": "a b", "options": ["right", "wrong"], "answer": label} for label in (0, 1)]
    file = write_tasks(tmp_path, docs) / "pick.yaml"
    file.write_text(file.read_text().replace("num_fewshot: 1", ""))
    scores = benchmarks(checkpoint, held(tiny, tmp_path, "pick"))
    assert tiny.values(scores, "tied") == [0, 1, 1]
    assert tiny.values(scores, "acc")[1:] == [1, 0]


@pytest.fixture
def passes(monkeypatch):
    """Counts what lm-eval is asked to score."""
    scored_names = []
    evaluate = _lm_eval.lm_eval.evaluate
    monkeypatch.setattr(
        _lm_eval.lm_eval,
        "evaluate",
        lambda model, tasks, **more: scored_names.extend(tasks["tasks"]) or evaluate(model, tasks, **more),
    )
    return scored_names


def test_a_checkpoint_is_never_scored_twice_on_a_task(model_folder, tasks, tiny, passes, tmp_path):
    scores = benchmarks(Checkpoint(model_folder, model_folder), held(tiny, tasks, "pick", "read"))
    assert passes == ["pick", "read"]
    # The same weights elsewhere, the same tasks elsewhere, and one task more.
    twin, moved = tmp_path / "twin", tmp_path / "moved"
    shutil.copytree(model_folder, twin)
    shutil.copytree(tasks, moved)
    for file in moved.glob("*.yaml"):
        file.write_text(file.read_text().replace(str(tasks), str(moved)))
    again = benchmarks(Checkpoint(twin, twin), held(tiny, moved, "pick", "read", "write"))
    assert passes == ["pick", "read", "write"]
    assert again[again["group"] != "write"].reset_index(drop=True).equals(scores)


def test_another_checkpoint_never_gets_its_answers(checkpoint, tiny, tokenizer, tasks, passes, tmp_path):
    first = benchmarks(checkpoint, held(tiny, tasks, "read"))
    tiny.llama(28, seed=6, max_position_embeddings=48).save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    second = benchmarks(Checkpoint(tmp_path / "other", tmp_path / "other"), held(tiny, tasks, "read"))
    assert passes == ["read", "read"]
    assert (first["value"] != second["value"]).all()


CHANGES = {
    "a document": ("docs.jsonl", '"answer": 0', '"answer": 1'),
    "the question's form": ("pick.yaml", 'doc_to_text: "{{question}}"', 'doc_to_text: "{{question}} a"'),
    "the examples": ("pick.yaml", "num_fewshot: 1", "num_fewshot: 2"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_task_is_scored_anew(checkpoint, tasks, tiny, passes, change):
    benchmarks(checkpoint, held(tiny, tasks, "pick"))
    name, old, new = CHANGES[change]
    text = (tasks / name).read_text()
    assert old in text
    (tasks / name).write_text(text.replace(old, new, 1))
    benchmarks(checkpoint, held(tiny, tasks, "pick"))
    assert passes == ["pick", "pick"]


@pytest.mark.parametrize("change", [{"batch_size": 1}, {"budget": 64}, {"limit": 3}, {"max_gen_toks": 2}])
def test_another_setting_is_another_score(checkpoint, tasks, tiny, passes, change):
    for settings in ({}, change, change):
        benchmarks(checkpoint, held(tiny, tasks, "write"), **settings)
    assert passes == ["write", "write"]


def test_a_damaged_or_forbidden_cache_costs_time_and_no_result(checkpoint, tasks, tiny, passes, tmp_path, monkeypatch):
    scores = benchmarks(checkpoint, held(tiny, tasks, "pick"))
    (file,) = (tmp_path / "cache").rglob("*.parquet")
    whole = file.read_bytes()
    for damaged in (b"", whole[:200], whole[:400] + bytes([whole[400] ^ 255]) + whole[401:]):
        file.write_bytes(damaged)
        assert benchmarks(checkpoint, held(tiny, tasks, "pick")).equals(scores)
        assert file.read_bytes() == whole
    monkeypatch.setenv("DPOBENCH_CACHE", str(file))
    assert benchmarks(checkpoint, held(tiny, tasks, "pick")).equals(scores)
    assert passes == ["pick"] * 5


def test_tasks_remembered_between_checkpoints_score_alike(checkpoint, tasks, tiny, monkeypatch):
    monkeypatch.setattr(module, "cached_table", lambda kind, checkpoint, settings, compute: compute())
    remembered = {}

    def compute_once(key, compute):
        return remembered[key] if key in remembered else remembered.setdefault(key, compute())

    held_out = held(tiny, tasks, "pick", "write", "read")
    plain = benchmarks(checkpoint, held_out)
    held_out = dataclasses.replace(held_out, compute_once=compute_once)
    assert benchmarks(checkpoint, held_out).equals(plain)
    assert benchmarks(checkpoint, held_out).equals(plain)
    assert len(remembered) == 1


def test_a_chat_template_is_required_where_there_is_one(checkpoint, tasks, tiny):
    with pytest.raises(UserError, match="template = true, but the tokenizer has no chat template"):
        benchmarks(checkpoint, held(tiny, tasks, "pick"), template=True)
    plain = benchmarks(checkpoint, held(tiny, tasks, "read", "pick"))
    checkpoint.tokenizer.chat_template = "{% for message in messages %}a {{ message['content'] }} b {% endfor %}"
    turned = benchmarks(checkpoint, held(tiny, tasks, "read", "pick"), template=True)
    assert turned[turned["group"] == "pick"].shape == plain[plain["group"] == "pick"].shape
    assert checkpoint.tokenizer.chat_template is not None
