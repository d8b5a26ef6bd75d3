"""The three real data sets, from file to report, with a small model made here. Skips where the data are absent."""

import csv
import json

import pytest

from tests.small_model import build

FEW = (
    "--no-baselines", "--set", "evaluation.pool=0",
    "--set", "data.limit=48", "--set", "recipe.batch=16", "--set", "recipe.learning_rate=5e-4", "--set", "recipe.max_tokens=640",
    "--set", "recipe.max_prompt_tokens=320", "--set", "data.most_lost=0.7", "--set", "evaluation.prompts=12",
    "--set", "evaluation.heldout_pairs=48", "--set", "evaluation.max_new_tokens=12", "--set", "data.heldout_share=0.15",
)  # fmt: skip


@pytest.fixture(scope="module")
def model(shared, tmp_path_factory):
    return build(tmp_path_factory.mktemp("model"), shared / "data" / "sft" / "alpaca_en_demo.json.gz", steps=8)


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "layout", "read", "kept"),
    [
        ("hh_harmless_test.jsonl.gz", "transcript", 2312, 2303),
        ("sharegpt_dpo_en_demo.json.gz", "conversations", 300, 295),
        ("alpacaeval2_pairs.jsonl.gz", "strings", 1067, 1067),
    ],
)
def test_a_real_data_set_goes_from_file_to_report(file, layout, read, kept, shared, model, dpobench, tmp_path):
    out = tmp_path / "out"
    data = shared / "data" / "preferences" / file
    done = dpobench("run", "--variants", "dpo", "--model", model, "--data", data, "--out", out, *FEW)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = json.loads((out / "plan.json").read_text())["data"]["train"]
    assert (counts["layout"], counts["read"], counts["kept"]) == (layout, read, kept)
    assert "win-rate" not in done.stdout.splitlines()[-6:]
    with (out / "report" / "tables" / "leaderboard.csv").open() as stream:
        rows = {row["variant"]: row for row in csv.DictReader(stream)}
    assert rows["dpo"]["win_rate"] == ""  # nobody judged
    assert float(rows["dpo"]["kl"]) > 0
    assert 0 <= float(rows["dpo"]["accuracy"]) <= 1
