"""Metrics of evaluators that the report does not know: shown with their unit and direction, and nothing but their declaration."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dpobench.analysis.findings import read
from dpobench.analysis.results import load
from dpobench.artifacts import scores
from dpobench.artifacts.scores import Metric, ScoreSettings
from dpobench.data.prompts import split_of
from dpobench.report import figures
from dpobench.report.sections import further
from dpobench.report.write import write_report
from tests.report.conftest import World, prompt_ids, seeded

PLUGIN = '''"""A user's evaluator: the share of vowels in an answer, by kind of vowel."""

import pandas as pd

from dpobench import Checkpoint, HeldOut, Metric, evaluator, score_rows


@evaluator(metrics={"vowels": Metric("share", "lower", label="vowels"), "*": Metric("letters", "none")})
def letters(checkpoint: Checkpoint, held_out: HeldOut) -> pd.DataFrame:
    """How much of an answer is vowels, and how many of each there are."""
    texts = held_out.samples["text"].str.lower().tolist()
    where = {"prompts": held_out.samples["prompt"].tolist(), "draws": held_out.samples["draw"].tolist()}
    share = [sum(sign in "aeiou" for sign in text) / max(len(text), 1) for text in texts]
    tables = [score_rows(where["prompts"], "vowels", share, draws=where["draws"])]
    for vowel in "ae":
        counted = [float(text.count(vowel)) for text in texts]
        tables.append(score_rows(where["prompts"], f"count_{vowel}", counted, draws=where["draws"]))
    return pd.concat(tables, ignore_index=True)
'''
DECLARED = {"toxicity": Metric("share", "lower", label="toxicity"), "*": Metric("points", "none")}
BETAS = (0.03, 0.1, 0.3)


def with_toxicity(folder: Path, rises: dict[str, float], world: World | None = None) -> Path:
    """Give an experiment an evaluator of another's: toxicity of the reference is 0.5, of each variant so much more, and more with beta."""
    world, run_notes = world or World(), sorted((folder / "runs").glob("*/run.json"))
    for place in [folder / "reference" / "0123456789ab", *(note.parent for note in run_notes)]:
        variant = place.name.rpartition("-")[0]
        beta = next((b for b in BETAS for seed in range(3) if place.name == _name(variant, b, seed)), None)
        level = 0.5 if beta is None else 0.5 + rises.get(variant, 0.0) + 0.5 * (beta - 0.1)
        noise = seeded("toxicity", place.name).normal(0, 0.05, world.prompts)
        values = np.clip(level + seeded("shared").normal(0, 0.1, world.prompts) + noise, 0, 1)
        frame = pd.concat(
            [
                scores.score_rows(prompt_ids(world), "toxicity", values),
                scores.score_rows([f"quiz/{i}" for i in range(40)], "quiz", np.arange(40.0), group="easy"),
            ],
            ignore_index=True,
        )
        scores.write(place, "safety", frame, DECLARED, ScoreSettings(seed=0))
    return folder


def _name(variant: str, beta: float, seed: int) -> str:
    return f"{variant}-{hashlib.sha256(f'{variant}{beta}{seed}'.encode()).hexdigest()[:12]}"


@pytest.fixture(scope="module")
def toxic(make):
    return with_toxicity(make(betas=BETAS), {"ipo": 0.1, "cdpo": 0.0})


def test_a_folder_whose_metrics_all_have_a_section_has_no_further_one(equal):
    assert further.section(read(load(equal))) is None


def test_an_unknown_metric_is_shown_with_unit_direction_difference_and_effect_of_beta(toxic):
    findings = read(load(toxic))
    with figures.drawing():
        section = further.section(findings)
    rows = {(row["metric"], row["variant"]): row for row in section.tables[0].records}
    ipo, control = rows["toxicity", "ipo"], rows["toxicity", "dpo"]
    assert (ipo["unit"], ipo["better"], ipo["label"]) == ("share", "lower", "toxicity")
    # Planted: both have one beta or different ones; each step of 0.1 in beta adds 0.05.
    planted = 0.1 + 0.5 * (float(ipo["beta"]) - float(control["beta"]))
    assert ipo["difference_to_control_low"] < planted < ipo["difference_to_control_high"]
    assert ipo["reading"] == "worse than dpo", "lower is better"
    assert control["reading"] == "control"
    assert control["difference_to_control"] is None
    assert ipo["betas"] == "0.03 to 0.3"
    assert ipo["beta_effect"] == pytest.approx(0.5 * (0.3 - 0.03), abs=0.02)
    assert ipo["beta_effect_low"] <= ipo["beta_effect"] <= ipo["beta_effect_high"]
    assert rows["toxicity", "reference"]["value"] == pytest.approx(0.5, abs=0.03)
    assert list(section.figures) == ["further_metrics"]
    assert "Metrics that no other section shows" in section.sentences[0]


def test_a_metric_named_at_run_time_means_what_was_declared_for_the_star(toxic):
    findings = read(load(toxic))
    row = next(row for row in further.section(findings).tables[0].records if row["metric"] == "quiz")
    assert (row["unit"], row["better"], row["label"], row["group"]) == ("points", "none", "quiz", "easy")
    assert (row["value"], row["n_prompts"]) == (19.5, 40), "documents that beta was not selected on all count"


def test_every_cell_is_in_the_grid_and_both_pages_have_the_tables(toxic):
    write_report(toxic)
    grid = pd.read_csv(toxic / "report" / "tables" / "further_metrics_grid.csv")
    assert len(grid[grid["metric"] == "toxicity"]) == 9
    html, markdown = (toxic / "report" / "report.html").read_text(), (toxic / "report" / "report.md").read_text()
    assert "## Further metrics" in markdown
    assert 'id="further"' in html
    assert html.count('aria-labelledby="further_metrics-caption"') == 1


def test_a_plugin_evaluator_is_in_the_report_of_a_run(tmp_path):
    plugin, out = tmp_path / "letters.py", tmp_path / "out"
    plugin.write_text(PLUGIN, encoding="utf-8")
    command = (
        "run --preset tiny --variants dpo,ipo --beta-grid 0.1,0.5 --no-baselines --seeds 0 --workers 1 --threads 1"
    )
    settings = ("evaluation.tasks=[]", "world.pairs=64", "world.steps=20", "evaluation.max_new_tokens=24")
    words = [*command.split(), "--plugin", str(plugin), "--out", str(out), *(w for s in settings for w in ("--set", s))]
    environment = os.environ | {"PYTHONPATH": str(Path(further.__file__).parents[3])}
    subprocess.run([sys.executable, "-m", "dpobench", *words], check=True, capture_output=True, env=environment)
    table = pd.read_csv(out / "report" / "tables" / "further_metrics.csv").set_index(["metric", "variant"])
    assert {"vowels", "count_a", "count_e"} <= set(table.index.get_level_values("metric"))
    assert table.loc[("vowels", "ipo"), "better"] == "lower"
    assert table.loc[("count_a", "ipo"), "unit"] == "letters"
    (samples,) = (pd.read_parquet(file) for file in out.glob("reference/*/samples.parquet"))
    answers = samples[samples["prompt"].map(split_of) == "test"].groupby("prompt")["text"].first()
    counted = answers.str.lower().str.count("a")
    assert table.loc[("count_a", "reference"), "value"] == pytest.approx(counted.mean())
    assert table.loc[("count_a", "reference"), "n_prompts"] == len(counted)
    for column in ("value", "difference_to_control", "beta_effect"):
        row = table.loc[("vowels", "ipo")]
        assert row[f"{column}_low"] <= row[column] <= row[f"{column}_high"]
