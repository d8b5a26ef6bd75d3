"""Our samples are those of lm-eval's own command line, on the same saved checkpoint and the same files."""

import json
import os
import subprocess
import sys

import pytest

from dpobench import Checkpoint
from dpobench.evals import _lm_eval
from dpobench.evals.benchmarks import benchmarks

PICK = """
task: pick
dataset_path: json
dataset_kwargs: {data_files: {test: %s}}
test_split: test
fewshot_split: test
num_fewshot: 2
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: options
doc_to_target: answer
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
"""
WRITE = """
task: write
dataset_path: json
dataset_kwargs: {data_files: {test: %s}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{options[0]}}"
generation_kwargs: {until: ["z"], max_gen_toks: 12}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true, regexes_to_ignore: ["[^ae]"]}
"""
METRICS = {"pick": ("acc", "acc_norm"), "write": ("exact_match",)}


@pytest.fixture
def files(tiny, tokenizer, tmp_path):
    tiny.llama(28, seed=5, max_position_embeddings=256).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    letters = tiny.WORDS
    docs = [
        {"question": " ".join(letters[n % 7 : 7 + n % 5]), "options": [letters[n % 26], " ".join(letters[n % 11 :][:3])], "answer": n % 2}
        for n in range(24)
    ]  # fmt: skip
    (tmp_path / "tasks").mkdir()
    data = tmp_path / "tasks" / "docs.jsonl"
    data.write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    (tmp_path / "tasks" / "pick.yaml").write_text(PICK % data)
    (tmp_path / "tasks" / "write.yaml").write_text(WRITE % data)
    return tmp_path


def by_command_line(folder):
    """Samples of lm-eval's command line, by task."""
    command = f"--model hf --model_args pretrained={folder / 'model'},dtype=float32 --tasks pick,write --device cpu --batch_size 16"
    command += f" --include_path {folder / 'tasks'} --output_path {folder / 'out'} --log_samples --limit 20"
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(folder / "data"),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-m", "lm_eval", *command.split()],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    scores = {}
    for name in METRICS:
        (file,) = (folder / "out").rglob(f"samples_{name}_*.jsonl")
        scores[name] = [json.loads(line) for line in file.read_text().splitlines()]
    return scores


@pytest.mark.slow
def test_every_sample_is_that_of_the_command_line(files, tiny, monkeypatch):
    monkeypatch.setenv("DPOBENCH_CACHE", str(files / "cache"))
    answered = []
    for kind in ("loglikelihood", "generate_until"):
        scored = getattr(_lm_eval.Model, kind)
        monkeypatch.setattr(
            _lm_eval.Model, kind, lambda *a, scored=scored, **k: answered.append(scored(*a, **k)) or answered[-1]
        )
    held = tiny.held_out_of(tiny.samples_of({"p": [[1]]}), tasks=("pick", "write"), task_folders=(files / "tasks",))
    ours = benchmarks(Checkpoint(files / "model", files / "model"), held, limit=20)
    theirs = by_command_line(files)
    for name, metrics in METRICS.items():
        assert [sample["doc_id"] for sample in theirs[name]] == list(range(20))
        for metric in metrics:
            expected = [sample[metric] for sample in theirs[name]]
            assert tiny.values(ours, metric, name) == expected
            assert 0 < sum(expected) < 20
    logps, texts = answered
    # Their samples hold numbers as text.
    pairs = [(float(logp), str(greedy) == "True") for sample in theirs["pick"] for ((logp, greedy),) in sample["resps"]]
    assert [greedy for _, greedy in logps] == [greedy for _, greedy in pairs]
    assert max(abs(ours - other) for (ours, _), (other, _) in zip(logps, pairs, strict=True)) < 1e-5
    assert texts == [sample["resps"][0][0] for sample in theirs["write"]]
    assert len(set(texts)) > 5
