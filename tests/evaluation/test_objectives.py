"""What `--objectives` says."""

import pytest

from dpobench.errors import UnknownName, UserError
from dpobench.evaluation import objectives
from dpobench.evaluation.objectives import ObjectiveSpec, judged_objectives, read_objectives
from dpobench.evaluation.plan import scoring_plan
from dpobench.evaluation.registry import JudgeRegistry, judge
from dpobench.evaluation.settings import Evaluation
from dpobench.experiment import options, validate
from dpobench.experiment.options import parse_objectives
from dpobench.experiment.validate import check_judges

JUDGES = ("gold", "reward_model")


def test_a_comma_separates_only_where_a_name_follows():
    assert parse_objectives(["a=gold:x.py:f, b = p,q.jsonl", "c=reward_model:org/m"]) == {
        "a": "gold:x.py:f",
        "b": "p,q.jsonl",
        "c": "reward_model:org/m",
    }


@pytest.mark.parametrize("text", ["gold", "=gold", "a=", "a b=gold", "1=gold", ""])
def test_a_part_without_name_or_value_is_refused(text):
    with pytest.raises(UserError, match="a name and a value are expected"):
        parse_objectives([text])


def test_a_name_given_twice_is_refused():
    with pytest.raises(UserError, match="helpful is named twice"):
        parse_objectives(["helpful=gold:a", "helpful=gold:b"])


def test_judges_files_and_hub_names_are_distinguished(tmp_path):
    file = tmp_path / "pairs.jsonl"
    file.write_text("")
    specs = read_objectives({"a": "gold:my.py:helpful", "b": str(file), "c": "org/pairs", "d": "reward_model"}, JUDGES)
    assert specs == [
        ObjectiveSpec("a", judge="gold", setting="my.py:helpful"),
        ObjectiveSpec("b", source=str(file)),
        ObjectiveSpec("c", source="org/pairs"),
        ObjectiveSpec("d", judge="reward_model"),
    ]


def test_one_objective_alone_is_refused():
    with pytest.raises(UserError, match="names a alone"):
        read_objectives({"a": "gold:x"}, JUDGES)


def test_a_file_that_is_not_there_and_a_judge_that_is_none_are_distinguished():
    with pytest.raises(UserError, match=r"objective b: absent\.jsonl is no judge, and there is no such file"):
        read_objectives({"a": "gold:x", "b": "absent.jsonl"}, JUDGES)
    with pytest.raises(UserError, match=r"objective b: data/absent\.jsonl is no judge, and there is no such file"):
        read_objectives({"a": "gold:x", "b": "data/absent.jsonl"}, JUDGES)
    with pytest.raises(UnknownName, match=r"'gld'.*[Dd]id you mean 'gold'"):
        read_objectives({"a": "gold:x", "b": "gld:y"}, JUDGES)


def requested(*objectives, **more):
    return options.Options(variants=["dpo"], objectives=objectives, **more).experiment()[0].evaluation.objectives


def test_bare_objectives_are_the_parts_of_the_embedded_defaults_reward():
    specs = requested("auto", preset="large")
    assert list(specs) == ["substance", "form"]
    assert all(value.endswith("_long") for value in specs.values()), "the reward of that preset"
    assert {plugin.name for plugin, _ in judged_objectives(Evaluation(objectives=specs)).values()} == {"gold"}


def test_bare_objectives_have_no_meaning_for_other_data():
    with pytest.raises(UserError, match="takes those of the embedded default"):
        requested("auto", model="m", data="d")
    with pytest.raises(UserError, match="bare and with values"):
        requested("auto", "a=gold:x,b=gold:y", preset="tiny")


def test_objectives_of_the_command_line_reach_the_evaluation():
    assert requested("a=gold:x.py:f", "b=gold:x.py:g", preset="tiny") == {"a": "gold:x.py:f", "b": "gold:x.py:g"}


def test_what_stands_behind_a_judge_is_its_first_setting_and_the_rest_is_the_win_rates_judge():
    judge_settings = {"judge": "reward_model", "judge_settings": {"max_tokens": 300}}
    evaluation = Evaluation(objectives={"a": "reward_model:org/m", "b": "gold:x.py:f"}, **judge_settings)
    specs = judged_objectives(evaluation)
    assert dict(specs["b"][1]) == {"function": "x.py:f"}
    assert specs["a"][1]["max_tokens"] == 300
    assert specs["a"][1]["model"] == "org/m"


def test_an_edited_judge_of_an_objective_is_another_plan(tmp_path):
    file = tmp_path / "objectives.py"
    keys = []
    for text in ("return 1.0", "return 2.0"):
        file.write_text(f"def f(prompt, completion):\n    {text}\n")
        evaluation = Evaluation(objectives={"a": f"gold:{file}:f", "b": f"gold:{file}:f"})
        keys.append(scoring_plan(evaluation, has_pairs=True, heldout="h").key)
    assert keys[0] != keys[1]


def test_objectives_that_were_not_requested_are_not_missed():
    left = scoring_plan(Evaluation(), has_pairs=True, heldout="h").left_out
    assert "objectives" not in {entry["evaluator"] for entry in left}
    with pytest.raises(UserError, match="needs objectives; name two or more with --objectives"):
        scoring_plan(Evaluation(evaluators=("objectives",)), has_pairs=True, heldout="h")


def test_the_judges_of_objectives_are_tried_before_anything_is_computed(tmp_path, monkeypatch):
    file = tmp_path / "tried.py"
    file.write_text(
        '"""A judge that tells what it was tried with."""\n'
        "from dpobench import UserError, judge\n"
        "def check(*, model=''):\n"
        "    raise UserError(f'nobody answers for {model}')\n"
        "@judge(pointwise=False, check=check)\n"
        "def tried(prompts, first, second, *, model: str = ''):\n"
        '    """Never called."""\n'
    )
    registry = JudgeRegistry("judge", "evals.judges", judge)
    registry.add_file(file)
    for module in (objectives, validate):
        monkeypatch.setattr(module, "judges", registry)
    with pytest.raises(UserError, match="nobody answers for me"):
        check_judges(Evaluation(objectives={"a": "tried:me", "b": "tried:you"}))
    known = tmp_path / "known.py"
    known.write_text("def f(prompt, answer):\n    return 0.0\n")
    gold = {"judge": "gold", "judge_settings": {"function": f"{known}:f"}}
    check_judges(Evaluation(objectives={"a": f"gold:{known}:f", "b": f"gold:{known}:f"}, **gold))
    with pytest.raises(UserError, match="defines no 'g'"):
        check_judges(Evaluation(objectives={"a": f"gold:{known}:f", "b": f"gold:{known}:g"}, **gold))
