"""The two objectives that the gold reward consists of."""

import tomllib
from pathlib import Path

import pytest

from dpobench.synthetic import gold
from dpobench.synthetic.embedded import presets
from dpobench.synthetic.world import DEFAULT

PLACE = DEFAULT.places[0]
PROMPT = f"How was your Friday evening at the {PLACE.name}?"
OPENING = f"I spent Friday evening at the {PLACE.name} in {PLACE.town}."
# Substance and form of each: a superb owner is 2 and one aspect; the grammatical faults and the missing end cost one each.
ANSWERS = {
    f"{OPENING} The owner {PLACE.owner} was superb. I give it five stars.": (2.5, 0.0),
    f"{OPENING} The owner {PLACE.owner} was superb.": (2.5, -2.0),
    "Superb superb was.": (0.0, -4.0),
}


@pytest.mark.parametrize(("answer", "expected"), ANSWERS.items())
def test_substance_and_form_are_what_the_reward_adds_up(answer, expected):
    parts = gold.substance(PROMPT, answer)["score"], gold.form(PROMPT, answer)["score"]
    assert parts == pytest.approx(expected)
    assert sum(parts) == pytest.approx(gold.score(PROMPT, answer)["score"])


def test_a_longer_review_is_free_in_the_world_of_long_ones():
    answer = " ".join([OPENING, f"The owner {PLACE.owner} was superb.", "word " * 40, "I give it five stars."])
    for short, long in ((gold.substance, gold.substance_long), (gold.form, gold.form_long)):
        assert long(PROMPT, answer)["score"] >= short(PROMPT, answer)["score"]
    assert gold.form_long(PROMPT, answer)["score"] > gold.form(PROMPT, answer)["score"]


def test_every_preset_has_two_aims_whose_functions_are_there():
    objectives = tomllib.loads((Path(gold.__file__).parent / "objectives.toml").read_text())
    assert set(objectives) == set(presets())
    for named in objectives.values():
        assert len(named) == 2
        assert all(callable(getattr(gold, value.rpartition(":")[2])) for value in named.values())
