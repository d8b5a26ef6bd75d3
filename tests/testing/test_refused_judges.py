"""Faulty judges are refused with the law they break; sound ones, of both kinds, are not."""

from pathlib import Path

import pytest

from dpobench.errors import PluginRefused
from dpobench.evaluation.registry import JudgeRegistry, judges
from dpobench.gallery.verdict import shown
from dpobench.testing import check, require
from dpobench.testing.judge_laws import FIRST, LAWS, QUESTIONS, SECOND
from tests.evals.small_judges import save_judge, save_reward_model

FOLDER = Path(__file__).parent / "judges"
# Function of this name -> the law it breaks, and words of the reason.
FAULTY = {
    "a_part_in_words": ("verdicts", "'reason' holds something else than numbers"),
    "another_column": ("shape", r"returns columns \['reward'\]"),
    "check_refuses_its_own_defaults": ("settings", "check refuses the settings: a scale of 1.0 will not do"),
    "check_takes_no_setting": ("declaration", "check cannot be called with all settings of the judge: .*'scale'"),
    "drops_empty_answers": ("shape", "4 rows for 5 answers"),
    "empties_the_lists": ("untouched", "work on copies"),
    "estimate_takes_one_number": ("declaration", "estimate cannot be called with three numbers"),
    "estimate_takes_no_setting": (
        "declaration",
        "estimate cannot be called with three numbers and all settings of the judge: .*'scale'",
    ),
    "fails_on_nothing": ("settings", "raises ValueError"),
    "infinite": ("verdicts", "'score' holds an infinite number"),
    "more_than_certain": ("verdicts", "a number from 0 to 1"),
    "no_verdict_with_a_number": ("verdicts", "NaN with unparsable or error"),
    "place_in_the_list": ("order", "judge each by itself"),
    "random_numbers": ("deterministic", "declare deterministic=False"),
    "refuses_its_own_defaults": ("settings", "refuses its settings: name a model"),
    "returns_a_list": ("settings", "returns a list"),
    "scores_in_words": ("shape", "holds something else than numbers"),
    "shares_of_the_best": ("alone", "do not average or normalise"),
    "undocumented": ("declaration", "no docstring"),
    "unknown_verdict": ("verdicts", "with verdict 'A'"),
}


def loaded(name, file="faulty"):
    registry = JudgeRegistry()
    registry.add_file(FOLDER / f"{file}.py")
    return registry.get(name)


def test_every_law_has_a_judge_that_breaks_it_and_every_example_is_tried():
    assert {law for law, _ in FAULTY.values()} == {"declaration", *LAWS}
    assert set(JudgeRegistry().add_file(FOLDER / "faulty.py")) == set(FAULTY)


@pytest.mark.parametrize("name", FAULTY)
def test_a_faulty_judge_is_refused_with_the_law_it_breaks(name):
    law, words = FAULTY[name]
    with pytest.raises(PluginRefused, match=words) as refusal:
        require(loaded(name))
    assert f"judge {name!r} (faulty.py) breaks the law {law!r}: " in str(refusal.value)


@pytest.mark.parametrize("name", JudgeRegistry().add_file(FOLDER / "accepted.py"))
def test_a_sound_judge_is_accepted(name):
    laws = check(loaded(name, "accepted"))
    assert [law.name for law in laws] == ["declaration", *LAWS]
    assert [law for law in laws if not law.passed] == []


def test_laws_that_a_declaration_takes_out_are_shown_as_not_tried():
    laws = check(loaded("in_a_mood", "accepted"))
    assert [law.name for law in laws if not law.tried] == ["deterministic", "order", "alone"]
    assert [law.name for law in check(loaded("length", "accepted")) if not law.tried] == []
    lines = list(shown(laws))
    assert lines[-1] == "  -       alone          not tried: declared with deterministic=False"
    assert len(lines) == len(laws)


def test_settings_that_check_refuses_break_a_law():
    broken = [law.name for law in check(loaded("length", "accepted"), {"scale": 0.0}) if not law.passed]
    assert broken == ["settings"]


def test_the_judge_that_asks_a_function_keeps_every_law(tmp_path):
    (tmp_path / "truth.py").write_text("def score(prompt, completion):\n    return len(completion)\n")
    laws = check(judges.get("gold"), {"function": f"{tmp_path / 'truth.py'}:score"})
    assert [f"{law.name}: {law.reason}" for law in laws if not law.passed] == []


@pytest.mark.parametrize("name", ["local", "reward_model"])
def test_a_judge_that_is_a_model_keeps_every_law(name, tmp_path):
    folder = {"local": save_judge, "reward_model": save_reward_model}[name](tmp_path / "model")
    laws = check(judges.get(name), {"model": str(folder), "device": "cpu"})
    assert [f"{law.name}: {law.reason}" for law in laws if not law.passed] == []


def test_the_judge_that_looks_verdicts_up_keeps_every_law(tmp_path):
    lines = [
        f'{{"prompt": "{prompt}", "first": "{first}", "second": "{second}", "p_first": 0.75}}'
        for prompt, first, second in zip(QUESTIONS, FIRST, SECOND, strict=True)
    ]
    (tmp_path / "verdicts.jsonl").write_text("\n".join(lines[:3]) + "\n", encoding="utf-8")
    laws = check(judges.get("imported"), {"file": str(tmp_path / "verdicts.jsonl")})
    assert [f"{law.name}: {law.reason}" for law in laws if not law.passed] == []


def test_a_judge_whose_rows_are_named_and_one_of_which_has_no_verdict_is_sound(tmp_path):
    file = tmp_path / "named.py"
    file.write_text(
        "import pandas as pd\nfrom dpobench import judge\n\n@judge(pointwise=True)\n"
        'def named(prompts, completions):\n    """Letters; none of an empty answer."""\n'
        "    values = [float(len(text)) if text else float('nan') for text in completions]\n"
        "    return pd.DataFrame({'score': values}, index=[f'row {i}' for i in range(len(values))], dtype=float)\n"
    )
    registry = JudgeRegistry()
    registry.add_file(file)
    require(registry.get("named"))
