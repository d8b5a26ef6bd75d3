"""The two aims that the gold reward consists of."""

import tomllib
from pathlib import Path

import pytest

from dpobench.synthetic import gold
from dpobench.synthetic.embedded import presets
from dpobench.synthetic.world import DEFAULT

PLACE = DEFAULT.places[0]
ASKED = f"How was your Friday evening at the {PLACE.name}?"
OPENING = f"I spent Friday evening at the {PLACE.name} in {PLACE.town}."
# What each is worth: a superb owner is 2 and one aspect; the grammatical faults and the missing end cost one each.
ANSWERS = {
    f"{OPENING} The owner {PLACE.owner} was superb. I give it five stars.": (2.5, 0.0),
    f"{OPENING} The owner {PLACE.owner} was superb.": (2.5, -2.0),
    "Superb superb was.": (0.0, -4.0),
}


@pytest.mark.parametrize(("answer", "worth"), ANSWERS.items())
def test_substance_and_form_are_what_the_reward_adds_up(answer, worth):
    found = gold.substance(ASKED, answer)["score"], gold.form(ASKED, answer)["score"]
    assert found == pytest.approx(worth)
    assert sum(found) == pytest.approx(gold.score(ASKED, answer)["score"])


def test_a_longer_review_is_free_in_the_world_of_long_ones():
    answer = " ".join([OPENING, f"The owner {PLACE.owner} was superb.", "word " * 40, "I give it five stars."])
    for short, long in ((gold.substance, gold.substance_long), (gold.form, gold.form_long)):
        assert long(ASKED, answer)["score"] >= short(ASKED, answer)["score"]
    assert gold.form_long(ASKED, answer)["score"] > gold.form(ASKED, answer)["score"]


def test_every_preset_has_two_aims_whose_functions_are_there():
    told = tomllib.loads((Path(gold.__file__).parent / "objectives.toml").read_text())
    assert set(told) == set(presets())
    for aims in told.values():
        assert len(aims) == 2
        assert all(callable(getattr(gold, value.rpartition(":")[2])) for value in aims.values())
