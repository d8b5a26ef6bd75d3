"""Selected checkpoints judged side by side, once all are there."""

import dataclasses

import pandas as pd
import pytest

from dpobench.analysis.findings import read
from dpobench.analysis.results import load
from dpobench.artifacts.files import read_json, sealed, write_json
from dpobench.data.prompts import split_of
from dpobench.evaluation.registry import judges
from dpobench.evaluation.settings import Evaluation
from dpobench.report.sections.tournament import section
from dpobench.sweep import tournament

PLUGIN = '''
from pathlib import Path
import pandas as pd
from dpobench import UserError, judge

@judge(pointwise=False)
def fond(prompts, first, second, *, whom="ipo", calls="", fails=False, silent=""):
    """Prefers answers said by one variant."""
    if fails:
        raise UserError("the budget is used up")
    with Path(calls, "calls").open("a") as stream:
        stream.write("x" * len(first))
    marks = [[f"Said by {whom}." in text for text in both] for both in zip(first, second)]
    table = pd.DataFrame({"p_first": [0.5 + (a - b) / 2 for a, b in marks]})
    table.loc[[prompt.id[0] == silent for prompt in prompts], "p_first"] = None
    return table

@judge(pointwise=True)
def scoring(prompts, completions):
    return pd.DataFrame({"score": [0.0] * len(completions)})
'''


@pytest.fixture
def with_judge(make, tmp_path):
    (tmp_path / "own.py").write_text(PLUGIN)
    judges.add_file(tmp_path / "own.py")
    folder = make(variants=("dpo", "ipo", "cdpo"), betas=(0.1,), seeds=(0, 1), prompts=40)
    calls = tmp_path / "calls"
    calls.touch()

    def evaluation(**more):
        # The folder, not the file: a file that a setting names is part of the setting, and this one grows.
        return Evaluation(judge="fond", judge_settings={"calls": str(tmp_path), **more})

    yield folder, evaluation, calls
    judges.extra_files.clear()
    for name in ("fond", "scoring"):
        judges._loaded.pop(name, None)


def test_each_variant_meets_the_control_on_the_test_prompts_in_both_orders(with_judge):
    folder, evaluation, _ = with_judge
    place = tournament.play(folder, evaluation())
    verdicts = pd.read_parquet(place / "verdicts.parquet")
    assert list(verdicts) == ["prompt", "draw", "a", "b", "score"]
    pairs = {(a.split("-")[0], b.split("-")[0]) for a, b in zip(verdicts["a"], verdicts["b"], strict=True)}
    assert pairs == {("ipo", "dpo"), ("cdpo", "dpo"), *((name, "reference") for name in ("dpo", "ipo", "cdpo"))}
    # Two seeds of each meet two seeds of the control.
    assert verdicts.groupby(["a", "b"]).ngroups == 8 + 6
    assert {split_of(prompt) for prompt in verdicts["prompt"]} == {"test"}
    ipo = verdicts[verdicts["a"].str.startswith("ipo")]
    assert set(ipo["score"]) == {0.5, 1.0}
    both = pd.read_parquet(place / "asked.parquet")
    assert len(both) == 2 * len(verdicts)
    assert set(both.loc[both["raw"].isna(), "verdict"]) == {"tie"}, "equal answers tie without a call"
    assert set(ipo.loc[ipo["score"] == 1, "prompt"]) == set(both.loc[both["raw"].notna(), "prompt"])
    note = read_json(place / "note.json")
    assert (len(note["games"]), note["comparisons"], note["missing"]) == (14, len(verdicts), 0)
    assert sealed(place)


def test_what_was_played_is_not_played_again_but_another_judge_plays_anew(with_judge):
    folder, evaluation, calls = with_judge
    tournament.play(folder, evaluation())
    count = calls.stat().st_size
    assert count > 0
    tournament.play(folder, evaluation())
    assert calls.stat().st_size == count
    tournament.play(folder, evaluation(whom="cdpo"))
    verdicts = pd.read_parquet(folder / "tournament" / "verdicts.parquet")
    assert calls.stat().st_size > count
    assert set(verdicts.loc[verdicts["a"].str.startswith("cdpo"), "score"]) == {0.5, 1.0}


def test_each_player_meets_each_other_where_that_was_requested(with_judge):
    folder, evaluation, _ = with_judge
    every = evaluation().model_copy(update={"opponents": ("reference", "round_robin")})
    verdicts = pd.read_parquet(tournament.play(folder, every) / "verdicts.parquet")
    pairs = {(a.split("-")[0], b.split("-")[0]) for a, b in zip(verdicts["a"], verdicts["b"], strict=True)}
    expected = {("dpo", "ipo"), ("dpo", "cdpo"), ("ipo", "cdpo")}
    assert pairs == expected | {(name, "reference") for name in ("dpo", "ipo", "cdpo")}
    tournament_section = section(read(load(folder)))
    assert "the judge's comparisons" in tournament_section.sentences[0], (
        "the report's tournament is read from these verdicts"
    )


def test_a_judge_that_fails_ends_nothing_and_is_reported(with_judge):
    folder, evaluation, _ = with_judge
    heard = []
    assert tournament.play(folder, evaluation(fails=True), heard.append) is None
    assert heard[-1] == "tournament not played: the budget is used up"
    assert not (folder / "tournament").exists()


def test_there_is_nothing_to_play_without_a_judge_or_with_one_that_scores(with_judge):
    folder, _, _ = with_judge
    assert tournament.play(folder) is None
    assert tournament.play(folder, Evaluation(judge="scoring")) is None


def moved(place):
    return place.with_name("tournament-earlier")


def test_what_each_variant_did_against_control_and_reference_is_in_the_report(with_judge):
    folder, evaluation, _ = with_judge
    tournament.play(folder, evaluation())
    tournament_section = section(read(load(folder)))
    assert "the judge's comparisons" in tournament_section.sentences[0]
    assert any(sentence.startswith("1 pairs did not meet") for sentence in tournament_section.sentences)
    strengths, matrix = tournament_section.tables[:2]
    assert set(strengths.frame["player"]) == {"dpo", "ipo", "cdpo", "reference"}
    assert strengths.frame["player"][0] == "ipo", "the judge is fond of it"
    by_player = {row["player"]: row for row in matrix.frame.to_dict("records")}
    place = list(by_player).index("cdpo")
    assert by_player["ipo"][f"against_{place}"] is None
    assert 0.5 < by_player["ipo"][f"expected_{place}"] < 1


def test_missing_verdicts_are_reported(with_judge):
    folder, evaluation, _ = with_judge
    tournament.play(folder, evaluation())
    assert not [line for line in section(read(load(folder))).sentences if "no verdict" in line]
    every = read_json(folder / "tournament" / "note.json")["prompts"]
    one = pd.read_parquet(folder / "tournament" / "asked.parquet").dropna(subset="raw")["prompt"].iloc[0]
    place = tournament.play(folder, evaluation(silent=one[0]))
    missing = read_json(place / "note.json")["missing"]
    tournament_section = section(read(load(folder)))
    assert 0 < missing < 1
    (sentence,) = [line for line in tournament_section.sentences if "no verdict" in line]
    assert sentence.startswith(f"The judge gave no verdict on {missing:.1%} of these comparisons")
    assert tournament_section.tables[0].frame["n_prompts"].iloc[0] < every


def test_baselines_do_not_play_and_do_not_hinder(with_judge):
    folder, evaluation, _ = with_judge
    record = read_json(folder / "plan.json")
    write_json(folder / "plan.json", record | {"baselines": ["cdpo"]})
    verdicts = pd.read_parquet(tournament.play(folder, evaluation()) / "verdicts.parquet")
    assert not any(run.startswith("cdpo") for column in "ab" for run in verdicts[column])
    tournament_section = section(read(load(folder)))
    assert set(tournament_section.tables[0].frame["player"]) == {"dpo", "ipo", "reference"}


@pytest.mark.parametrize("other", [{"judge": "scoring"}, {"judge": None}, {"fails": True}])
def test_a_tournament_does_not_outlive_its_judge(with_judge, other):
    folder, evaluation, calls = with_judge
    place = tournament.play(folder, evaluation())
    before, count = (place / "verdicts.parquet").read_bytes(), calls.stat().st_size
    assert tournament.play(folder, evaluation(**other) if "fails" in other else Evaluation(**other)) is None
    assert not place.exists()
    assert "the judge's comparisons" not in " ".join(section(read(load(folder))).sentences)
    # Nothing that was paid for is lost.
    assert (tournament.play(folder, evaluation()) / "verdicts.parquet").read_bytes() == before
    assert calls.stat().st_size == count
    assert not moved(place).exists()


def test_two_judges_in_turn_are_called_once_each(with_judge):
    folder, evaluation, calls = with_judge
    counts = []
    for _ in range(2):
        for whom in ("ipo", "cdpo"):
            place = tournament.play(folder, evaluation(whom=whom))
            verdicts = pd.read_parquet(place / "verdicts.parquet")
            assert set(verdicts.loc[verdicts["a"].str.startswith(whom), "score"]) == {0.5, 1.0}
        counts.append(calls.stat().st_size)
    assert counts[0] == counts[1] > 0


def test_verdicts_of_another_judge_than_the_reports_are_not_shown(with_judge):
    folder, evaluation, _ = with_judge
    place = tournament.play(folder, evaluation())
    note = next((folder / "reference").glob("*/scores/winrate.json"))
    record, judge = read_json(note), read_json(place / "note.json")["judge"]
    for key, shown in ((judge, True), ("another", False)):
        write_json(note, record | {"settings": {"needs": {"judge": key}}})
        assert ("the judge's comparisons" in " ".join(section(read(load(folder))).sentences)) == shown


def test_a_judge_that_breaks_ends_nothing_and_leaves_its_traceback(with_judge, monkeypatch):
    folder, evaluation, _ = with_judge

    def breaks(prompts, first, second, **settings):
        raise RuntimeError("CUDA out\nof memory")

    judge = judges.get("fond")
    assert judge.parameters
    monkeypatch.setitem(judges._loaded, "fond", dataclasses.replace(judge, function=breaks))
    monkeypatch.setitem(vars(judges._loaded["fond"]), "parameters", judge.parameters)
    heard = []
    assert tournament.play(folder, evaluation(), heard.append) is None
    assert heard[-1] == "tournament not played: RuntimeError: CUDA out of memory (more in tournament-failed.json)"
    assert "in breaks" in read_json(folder / "tournament-failed.json")["traceback"]
    assert not (folder / "tournament").exists()
    monkeypatch.undo()
    assert tournament.play(folder, evaluation())
    assert not (folder / "tournament-failed.json").exists()
