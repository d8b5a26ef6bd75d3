import csv
import html.parser
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dpobench.artifacts import scores
from dpobench.data.prompts import split_of
from dpobench.errors import UserError
from dpobench.report.write import write_report

HOSTILE = '<script>alert(1)</script> =1+1 | a | `b` ![x](http://evil.example/x.png) \u202e[31m "><img src=x onerror=alert(2)> {{ 7*7 }}'


def rows(folder, name):
    with (folder / "report" / "tables" / f"{name}.csv").open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def by_variant(folder):
    return {row["variant"]: row for row in rows(folder, "leaderboard")}


class Page(html.parser.HTMLParser):
    """Tags, addresses and text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.addresses, self.handlers, self.text, self.ids = set(), [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.addresses += [
            v for k, v in attrs if k in ("src", "href", "xlink:href", "srcset", "action", "data", "poster")
        ]
        self.handlers += [k for k, _ in attrs if k.startswith("on")]
        self.ids += [v for k, v in attrs if k == "id"]

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def single(make):
    folder = make(seeds=(0,), betas=(0.1,), advantage={"ipo": 0.2}, variants=("dpo", "ipo"))
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def without_judge(make):
    folder = make(judge=False, variants=("dpo", "ipo"), seeds=(0, 1), betas=(0.1,), prompts=256)
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def hostile(make):
    folder = make(
        text=HOSTILE,
        name=HOSTILE,
        reason=HOSTILE,
        variants=("dpo", "=cmd|' /C calc'!A0"),
        seeds=(0,),
        diverged=(("dpo", 0.03, 0),),
    )
    write_report(folder)
    return folder


def test_the_leaderboard_has_a_row_per_variant_and_the_columns_that_were_promised(planted_report):
    table = rows(planted_report, "leaderboard")
    assert [row["variant"] for row in table] == [
        "ipo",
        *sorted({"dpo", "cdpo"}, key=lambda v: -float(by_variant(planted_report)[v]["win_rate"])),
        "reference",
    ]
    promised = (
        "variant beta seeds win_rate win_rate_low win_rate_high kl kl_low kl_high benchmark_delta p_adjusted level"
    )
    promised += (
        " learning_rate params kl_per_token length_ratio ended accuracy n_prompts trials runs_failed verdict run_ids"
    )
    assert set(promised.split()) <= set(table[0])
    assert table[0]["level"] == "method"
    assert table[0]["seeds"] == "3"


def test_a_planted_better_variant_is_detected_and_an_equal_one_is_not(planted_report):
    table = by_variant(planted_report)
    assert table["ipo"]["verdict"] == "better than dpo"
    assert float(table["ipo"]["p_adjusted"]) < 0.05
    assert float(table["ipo"]["difference_to_control_low"]) < 0.12 < float(table["ipo"]["difference_to_control_high"])
    assert table["cdpo"]["verdict"] == "no difference shown"
    assert table["dpo"]["verdict"] == "control"


def test_equal_variants_show_no_difference(equal):
    write_report(equal)
    table = by_variant(equal)
    assert table["ipo"]["verdict"] == table["cdpo"]["verdict"] == "no difference shown"
    assert "The data do not show that any variant beats dpo on win-rate" in (equal / "report" / "report.md").read_text()


def test_the_headline_number_is_the_mean_over_test_prompts_of_the_selected_runs(planted_report):
    row = by_variant(planted_report)["ipo"]
    means = []
    for run in row["run_ids"].split():
        frame = pd.read_parquet(planted_report / "runs" / run / "scores" / "winrate.parquet")
        tested = frame[(frame["metric"] == "win_rate") & (frame["prompt"].map(split_of) == "test")]
        means.append(tested["value"].mean())
        assert len(tested) == int(row["n_prompts"])
    assert float(row["win_rate"]) == pytest.approx(np.mean(means), abs=1e-9)


def test_the_benchmark_delta_is_the_mean_over_tasks_of_the_paired_deltas(planted_report):
    tasks = [row for row in rows(planted_report, "benchmarks") if row["variant"] == "dpo"]
    assert {row["task"] for row in tasks} == {"facts", "steering", "grammar"}
    assert {row["task"]: row["documents"] for row in tasks}["facts"] == "120"
    expected = np.mean([float(row["delta"]) for row in tasks])
    assert float(by_variant(planted_report)["dpo"]["benchmark_delta"]) == pytest.approx(expected, abs=1e-9)
    assert {row["task"]: row["chance"] for row in tasks}["facts"] == "0.25"


def test_a_diverged_run_stays_in_the_grid_with_its_reason_and_is_never_selected(planted_report):
    cells = {(row["variant"], row["beta"]): row for row in rows(planted_report, "grid")}
    assert len(cells) == 9
    broken = cells["cdpo", "0.03"]
    assert "seed 1 diverged: step 17: loss is not finite" in broken["reason"]
    assert (broken["selected"], broken["seeds"]) == ("no", "2")
    assert sum(row["selected"] == "yes" for row in cells.values()) == 3
    assert by_variant(planted_report)["cdpo"]["runs_failed"] == "1"


def test_a_cell_that_went_far_and_wins_less_is_called_over_optimised(planted_report):
    readings = {(row["variant"], row["beta"]): row["reading"] for row in rows(planted_report, "over_optimisation")}
    assert readings["dpo", "0.03"] == "over-optimised"
    assert readings["dpo", "0.3"] == ""


def test_one_seed_makes_no_claim_about_the_method(single):
    row = by_variant(single)["ipo"]
    assert row["level"] == "checkpoint"
    assert row["verdict"] == "better than dpo (this checkpoint only)"
    text = (single / "report" / "report.md").read_text()
    assert "With one seed this compares checkpoints, not methods" in text
    leaderboard = text[text.index("### Leaderboard") : text.index("Estimates with 95 %")]
    assert "**" not in leaderboard


def test_bold_is_only_what_holm_lets_through(planted_report):
    text = (planted_report / "report" / "report.html").read_text()
    board = text[text.index('id="board"') : text.index('id="front"')]
    assert board.count("<strong>") == 4  # name, difference, p and verdict of the one variant
    assert "<strong>better than dpo</strong>" in board


def test_without_a_judge_the_variants_are_ranked_on_held_out_pairs(without_judge):
    row = by_variant(without_judge)["ipo"]
    assert row["win_rate"] == row["win_rate_low"] == ""
    assert 0.6 < float(row["accuracy"]) < 1
    assert row["verdict"] != "not compared"
    assert "There was no judge" in (without_judge / "report" / "report.html").read_text()
    assert (without_judge / "report" / "figures" / "frontier.svg").is_file()


def test_written_twice_the_report_has_the_same_bytes(planted_report, tmp_path):
    first = {
        f.relative_to(planted_report): f.read_bytes() for f in (planted_report / "report").rglob("*") if f.is_file()
    }
    moved = tmp_path / "elsewhere"
    shutil.copytree(planted_report, moved, ignore=shutil.ignore_patterns("report"))
    code = "import sys; from pathlib import Path; from dpobench.report.write import write_report; write_report(Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, str(moved)], check=True, cwd=Path(__file__).parents[2])
    second = {f.relative_to(moved): f.read_bytes() for f in (moved / "report").rglob("*") if f.is_file()}
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []


def test_the_page_asks_nothing_of_the_network_and_runs_no_script(planted_report, hostile):
    for folder in (planted_report, hostile):
        page = Page((folder / "report" / "report.html").read_text())
        assert [address for address in page.addresses if not address.startswith("#")] == []
        assert not {"script", "iframe", "object", "embed", "link", "img", "form", "base"} & page.tags
        assert page.handlers == []
        assert len(page.ids) == len(set(page.ids))
        assert {address[1:] for address in page.addresses} <= set(page.ids)


def test_hostile_text_is_shown_and_does_nothing(hostile):
    text = (hostile / "report" / "report.html").read_text()
    shown = "".join(Page(text).text)
    assert "<script>alert(1)</script>" in shown
    assert "⟨U+202E⟩" in shown
    assert "\u202e" not in text
    assert "\x1b" not in text
    assert "{{ 7*7 }}" in shown


def test_no_cell_of_a_csv_is_a_formula(hostile):
    for path in sorted((hostile / "report" / "tables").glob("*.csv")):
        for row in csv.reader(path.read_text(encoding="utf-8").splitlines()):
            for cell in row:
                number = cell.lstrip("-").replace(".", "", 1).replace("e-", "", 1).isdigit()
                assert number or not cell.startswith(("=", "+", "-", "@", "\t")), (path.name, cell)
    assert "'=cmd|' /C calc'!A0" in {row["variant"] for row in rows(hostile, "leaderboard")}


def test_hostile_text_breaks_no_markdown_table_and_no_code_block(hostile):
    text = (hostile / "report" / "report.md").read_text()
    outside = "".join(part for i, part in enumerate(text.split("```")) if i % 2 == 0)
    assert "<script" not in outside
    assert "![x](" not in outside
    table = [line for line in text.splitlines() if line.startswith("| =cmd") or "\\|' /C calc" in line]
    assert table
    header = next(line for line in text.splitlines() if line.startswith("| Variant"))
    leader = next(line for line in text.splitlines() if line.startswith("| =cmd"))
    assert leader.replace("\\|", "").count("|") == header.count("|")


def test_where_the_numbers_come_from_includes_decoding_judge_and_settings(make):
    folder = make(variants=("dpo",), betas=(0.1,), seeds=(0,), prompts=64)
    record = json.loads((folder / "experiment.json").read_text())
    record["evaluation"] = {
        "draws": 2,
        "max_new_tokens": 64,
        "temperature": 1.0,
        "batch": 128,
        "pool": 4,
        "judge": "gold",
    }
    record["evaluation"]["judge_settings"] = {"function": "world:score", "budget": {"max_requests": 5}}
    (folder / "experiment.json").write_text(json.dumps(record))
    for place in [*(folder / "runs").iterdir(), *(folder / "reference").iterdir()]:
        frame, meaning = scores.read(place, "kl")
        scores.write(place, "kl", frame, meaning, {"arguments": {"chunk": 64}, "code": "abc", "needs": {"judge": "j0"}})
    write_report(folder)
    page = (folder / "report" / "report.html").read_text()
    origin = "".join(Page(page[page.index('id="origin"') :]).text)
    assert "temperature 1, the whole distribution (top_p 1, top_k 0), at most 64 tokens, 2 to a prompt" in origin
    assert "4 further ones of the reference" in origin
    assert "gold, function=world:score" in origin
    assert "max_requests" not in origin
    assert "chunk=64, code abc, judge j0" in origin


def test_planned_runs_that_are_not_there_are_reported_as_missing(make):
    folder = make(variants=("dpo", "ipo"), seeds=(0, 1), betas=(0.1,), prompts=128)
    gone = sorted((folder / "runs").glob("ipo-*"))[0]
    shutil.rmtree(gone)
    write_report(folder)
    assert "1 of 4 planned runs have not finished" in (folder / "report" / "report.md").read_text()
    assert [row["missing"] for row in rows(folder, "trials")] == ["0", "1"]


def test_where_everything_failed_the_report_says_so(make):
    folder = make(variants=("dpo",), betas=(0.1,), seeds=(0,), prompts=64, diverged=(("dpo", 0.1, 0),))
    write_report(folder)
    assert "Nothing can be ranked yet" in (folder / "report" / "report.md").read_text()
    assert rows(folder, "grid")[0]["reason"].startswith("seed 0 diverged")


def test_a_folder_without_a_plan_is_refused_with_what_to_name(tmp_path):
    with pytest.raises(UserError, match=r"no plan\.json; name the folder of an experiment"):
        write_report(tmp_path)


def test_a_failed_report_leaves_the_old_one(single, monkeypatch):
    from dpobench.report import page

    before = (single / "report" / "report.html").read_bytes()
    monkeypatch.setattr(page, "SHOWN_PROMPTS", "six")
    with pytest.raises(TypeError):
        write_report(single)
    assert (single / "report" / "report.html").read_bytes() == before
    assert list(single.glob(".report*")) == []


def test_the_report_imports_no_torch():
    code = (
        "import sys, dpobench.report.page, dpobench.report.figures, dpobench.stats; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
