"""The shipped definitions read real files as lm-eval's own definitions read the hub's."""

import json

import pytest

from dpobench import Checkpoint, UserError
from dpobench.evals import _lm_eval
from dpobench.evals.benchmarks import benchmarks
from dpobench.evaluation.benchmark_tasks import check_tasks, definitions, leaves, shipped

pytestmark = pytest.mark.shared


@pytest.fixture
def data(shared, tmp_path, monkeypatch):
    folder = shared / "data" / "benchmarks"
    if not folder.is_dir():
        pytest.skip(f"{folder.name}/ is absent")
    monkeypatch.setenv("DPOBENCH_BENCHMARKS", str(folder))
    monkeypatch.setenv("DPOBENCH_CACHE", str(tmp_path / "cache"))
    return folder


def test_the_questions_are_those_of_the_stock_tasks_and_the_answers_those_of_the_files(data):
    with _lm_eval.quiet():
        loaded = _lm_eval.load(["piqa_local", "gsm8k_local", "blimp_wh_island_local"], ())
    lines = {file.stem: [json.loads(line) for line in file.read_text().splitlines()] for file in data.rglob("*.jsonl")}
    labels = [int(line) for line in (data / "piqa_valid_labels.lst").read_text().split()]
    piqa, gsm, blimp = (loaded[name] for name in ("piqa_local", "gsm8k_local", "blimp_wh_island_local"))
    assert [len(list(task.eval_docs)) for task in (piqa, gsm, blimp)] == [1838, 1319, 1000]
    for number in (0, 7, 1837):
        doc, file = piqa.eval_docs[number], lines["piqa_valid"][number]
        assert piqa.doc_to_text(doc) == f"Question: {file['goal']}\nAnswer:"
        assert piqa.doc_to_choice(doc) == [file["sol1"], file["sol2"]]
        assert piqa.doc_to_target(doc) == labels[number]
    assert gsm.doc_to_text(gsm.eval_docs[3]) == f"Question: {lines['gsm8k_test'][3]['question']}\nAnswer:"
    assert gsm.doc_to_target(gsm.eval_docs[3]) == lines["gsm8k_test"][3]["answer"]
    assert [name for name, _ in gsm.config.generation_kwargs.items()] == ["until", "do_sample", "temperature"]
    pair = lines["wh_island"][5]
    assert blimp.doc_to_choice(blimp.eval_docs[5]) == [pair["sentence_good"], pair["sentence_bad"]]


def test_they_are_scored_offline_with_a_limit(data, tiny, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    tiny.llama(28, max_position_embeddings=2048).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    names = ("piqa_local", "gsm8k_local", "blimp_local")
    held_out = tiny.held_out_of(tiny.samples_of({"p": [[1]]}), tasks=names)
    scores = benchmarks(Checkpoint(tmp_path / "model", tmp_path / "model"), held_out, limit=3, max_gen_toks=4)
    counts = scores[scores["metric"].isin(["acc", "exact_match"])].groupby("group").size()
    assert counts.tolist() == [3] * 10
    assert sum(name.startswith("blimp_") for name in counts.index) == 8
    # Every English word is unknown to this tokenizer, so that two sentences of equal length are one to the model.
    tied = scores[(scores["metric"] == "tied") & scores["group"].str.startswith("blimp_")]
    assert tied["value"].mean() > 0.5


def test_every_shipped_definition_stands_on_a_stock_one(data):
    known = definitions(shipped())
    check_tasks(sorted(known))
    assert len(leaves("blimp_local", known)) == 8
    assert all(one.files and all(name.startswith(str(data)) for name in one.files) for one in known.values())


def test_without_the_folder_of_data_it_says_how_to_name_it(data, monkeypatch):
    monkeypatch.delenv("DPOBENCH_BENCHMARKS")
    with pytest.raises(UserError, match=r"'piqa_local' reads \$\{DPOBENCH_BENCHMARKS\}, which is not set; .*export"):
        check_tasks(["piqa_local"])
