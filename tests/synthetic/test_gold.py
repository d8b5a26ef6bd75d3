"""The gold reward on texts whose worth is worked out by hand."""

import pytest

from dpobench.errors import UserError
from dpobench.synthetic.gold import biased, score, score_long
from dpobench.synthetic.grammar import Grammar
from dpobench.synthetic.world import ASPECTS, DEFAULT, OWNERS, TOWNS, make_world

PLACE = next(place for place in DEFAULT.places if place.kind == "cafe")
PROMPT = f"How was your Friday morning at the {PLACE.name}?"
OPENING = f"I spent Friday morning at the {PLACE.name} in {PLACE.town}."


def text(*statements: str, opening: str = OPENING, ending: str = "I give it four stars.") -> str:
    return " ".join(part for part in (opening, *statements, ending) if part)


@pytest.mark.parametrize(
    ("statements", "expected"),
    [
        (["The cake was pleasant."], 1 + 0.5),
        (["The cake was very pleasant.", "I loved the tables."], (1.25 + 2) / 2 + 1.0),
        (["The cake was truly superb.", "I loathed the tables.", "I saw the soup."], (3 - 2 + 0) / 3 + 1.5),
        ([f"The owner {PLACE.owner} was quite good."], 0.75 + 0.5),
        ([f"The {PLACE.colour} door looked awful."], -2 + 0.5),
        (["The cake was superb.", "The tables was superb."], 2 + 0.5 - 1),
        (["The cake was superb.", "Cake the superb was."], 2 + 0.5 - 1),
        (["The cake was superb.", "The cake was superb."], 2 + 0.5 - 1),
        (["The cake was superb.", "The pillows were superb."], 2 + 0.5 - 1),
        ([], 0.0),
    ],
)
def test_a_review_is_worth_its_sentiment_and_aspects_less_its_faults(statements: list[str], expected: float) -> None:
    assert score(PROMPT, text(*statements))["score"] == pytest.approx(expected)


def test_a_fourth_aspect_earns_nothing_but_counts_in_the_long_world() -> None:
    four = text("I loved the cake.", "I loved the soup.", "I loved the tables.", "I loved the cups.")
    assert score(PROMPT, four)["aspects"] == 3
    assert score_long(PROMPT, four)["aspects"] == 4


@pytest.mark.parametrize(
    "falsehood",
    [
        f"I spent Monday morning at the {PLACE.name} in {PLACE.town}.",
        f"I spent Friday evening at the {PLACE.name} in {PLACE.town}.",
        f"I spent Friday morning at the {PLACE.name} in {next(t for t in TOWNS if t != PLACE.town)}.",
    ],
)
def test_a_false_opening_costs_one(falsehood: str) -> None:
    parts = score(PROMPT, text("I loved the cake.", opening=falsehood))
    assert (parts["false"], parts["missing"], parts["score"]) == (1, 0, pytest.approx(2 + 0.5 - 1))


def test_a_wrong_owner_is_false() -> None:
    other = next(owner for owner in OWNERS if owner != PLACE.owner)
    parts = score(PROMPT, text("I loved the cake.", f"The owner {other} was superb."))
    assert (parts["false"], parts["sentiment"]) == (1, 2)


def test_missing_opening_stars_and_end_cost_one_each() -> None:
    assert score(PROMPT, "")["score"] == -3
    assert score(PROMPT, text("I loved the cake.", opening=""))["missing"] == 1
    assert score(PROMPT, text("I loved the cake.", ending=""))["missing"] == 2
    assert score(PROMPT, text("I loved the cake.") + " I loved the soup.")["missing"] == 1


def test_a_text_that_breaks_off_is_ungrammatical_and_has_no_end() -> None:
    parts = score(PROMPT, text("I loved the cake.", ending="I give it"))
    assert (parts["ungrammatical"], parts["missing"]) == (1, 2)


def test_words_above_the_limit_cost_a_tenth_each_and_please_the_biased_proxy() -> None:
    long = text(*["The cake was superb."] * 6)
    words = len(long.split())
    assert words > 36
    parts = score(PROMPT, long)
    assert parts["length_penalty"] == pytest.approx(0.1 * (words - 36))
    assert parts["score"] == pytest.approx(2 + 0.5 - 5 - 0.1 * (words - 36))
    assert biased(PROMPT, long, bonus=0.5)["score"] == pytest.approx(2 + 0.5 - 5 + 0.5 * words)
    assert biased(PROMPT, long)["unbiased"] == parts["score"]


def test_the_score_comes_first_and_is_the_sum_of_its_parts() -> None:
    parts = score(PROMPT, text("The cake was superb.", "The pillows were superb.", "soup soup", "The tables was dull."))
    assert next(iter(parts)) == "score"
    faults = sum(parts[name] for name in ("ungrammatical", "false", "repeated", "missing", "length_penalty"))
    assert parts["score"] == pytest.approx(parts["sentiment"] + 0.5 * parts["aspects"] - faults)


def test_a_prompt_of_another_world_is_refused_by_name() -> None:
    with pytest.raises(UserError, match="What is love"):
        score("What is love?", "A dream.")


def test_every_review_and_steered_prompt_is_read_back() -> None:
    grammar = Grammar()
    prompts = [*grammar.review_prompts(), *grammar.steered_prompts()]
    assert len(set(prompts)) == len(prompts)
    for prompt in prompts[::37]:
        request = grammar.read_prompt(prompt)
        assert request is not None
        assert request.place.name in prompt
        assert request.day in prompt
        assert request.tone in prompt


def test_a_world_is_a_function_of_its_seed_and_survives_json() -> None:
    assert make_world.__wrapped__(0) == DEFAULT
    assert make_world(1) != DEFAULT
    assert type(DEFAULT).from_json(DEFAULT.as_json()) == DEFAULT
    assert len(DEFAULT.by_name) == 24
    assert {place.kind for place in DEFAULT.places} == set(ASPECTS)
