"""Our rows are lm-eval's own, document by document."""

import json
import logging
import math
import random
import warnings

import datasets
import numpy as np
import pytest
import torch

from dpobench import UserError
from dpobench.checkpoint import Checkpoint
from dpobench.evals import benchmarks as module
from dpobench.evals.benchmarks import benchmarks
from dpobench.scores import check

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
    from lm_eval.tasks import TaskManager

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
    found = benchmarks(checkpoint, held(tiny, tasks, "pick", "write", "read"))
    check(found, benchmarks.__dpobench__[1]["metrics"], "benchmarks")
    theirs = by_lm_eval(model_folder, tasks, ("pick", "write", "read"))
    ours = {(row.group, row.metric, row.prompt): row.value for row in found.itertuples()}
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
    accuracy = found.loc[(found["group"] == "pick") & (found["metric"] == "acc"), "value"]
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
    with pytest.raises(UserError, match=r"task 'pick' document 2: an option of 60 tokens.*1 to 48"):
        benchmarks(checkpoint, held(tiny, write_tasks(tmp_path, docs), "pick"))
    assert not calls


def test_a_context_that_lost_its_start_is_told(checkpoint, tiny, tmp_path):
    docs = [{"question": "a b", "options": ["c", "d"], "answer": 0}] * 2
    docs.append({"question": "a " * 60, "options": ["c", "d"], "answer": 0})
    file = write_tasks(tmp_path, docs) / "pick.yaml"
    file.write_text(file.read_text().replace("num_fewshot: 1", ""))
    found = benchmarks(checkpoint, held(tiny, tmp_path, "pick"))
    assert tiny.values(found, "truncated") == [0, 0, 1]


def test_a_context_that_lost_its_start_scores_as_in_lm_eval_itself(checkpoint, model_folder, tiny, tmp_path):
    draw = random.Random(1)
    text = lambda count: " ".join(draw.choices(tiny.WORDS, k=count))  # noqa: E731
    # Around the context of 48 tokens, where one token more or less decides what the model reads.
    docs = [{"question": text(36 + n), "options": [text(3), text(1)], "answer": 0} for n in range(16)]
    file = write_tasks(tmp_path, docs) / "pick.yaml"
    file.write_text(file.read_text().replace("num_fewshot: 1", ""))
    theirs = by_lm_eval(model_folder, tmp_path, ["pick"])["samples"]["pick"]
    seen = []
    scored = module._Model.loglikelihood
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module._Model, "loglikelihood", lambda *a, **k: seen.extend(scored(*a, **k)) or seen)
        benchmarks(checkpoint, held(tiny, tmp_path, "pick"))
    expected = [response for sample in theirs for response in sample["filtered_resps"]]
    assert [greedy for _, greedy in seen] == [greedy for _, greedy in expected]
    assert [logp for logp, _ in seen] == pytest.approx([logp for logp, _ in expected], abs=1e-4)


def test_lm_evals_own_index_is_read_only_for_names_that_are_not_local(checkpoint, tasks, tiny, monkeypatch):
    from lm_eval.tasks import TaskManager

    asked = []

    def stock(folders):
        asked.append(folders)
        return TaskManager(include_path=list(folders), include_defaults=False)

    monkeypatch.setattr(module, "_with_stock", stock)
    benchmarks(checkpoint, held(tiny, tasks, "pick"))
    assert asked == []
    with pytest.raises(UserError, match=r"no task is called 'pik' in .*tasks or in lm-eval\. Nearest: 'pick'"):
        benchmarks(checkpoint, held(tiny, tasks, "pik"))
    assert asked == [(str(tasks),)]
    (tasks / "torn.yaml").write_text("task: [")
    with pytest.raises(UserError, match=r"torn\.yaml is there, but lm-eval finds no task of that name in it"):
        benchmarks(checkpoint, held(tiny, tasks, "torn"))


def test_a_missing_folder_or_data_file_is_named(checkpoint, tasks, tiny):
    with pytest.raises(UserError, match="elsewhere: no such folder"):
        benchmarks(checkpoint, held(tiny, tasks / "elsewhere", "pick"))
    (tasks / "docs.jsonl").unlink()
    with pytest.raises(UserError, match="task 'pick' cannot be loaded"):
        benchmarks(checkpoint, held(tiny, tasks, "pick"))


def test_a_mistyped_metric_is_named_and_not_looked_up_on_the_hub(checkpoint, tasks, tiny):
    file = tasks / "pick.yaml"
    file.write_text(file.read_text().replace("metric: acc,", "metric: acccc,"))
    with pytest.raises(UserError, match=r"task 'pick' asks for metric 'acccc'.*did you mean 'acc'"):
        benchmarks(checkpoint, held(tiny, tasks, "pick"))
