"""The grammar's log-probabilities, against enumeration and against its own draws."""

import math
import random
from collections import Counter
from itertools import permutations, product

import pytest

from dpobench.synthetic.gold import is_clean, score
from dpobench.synthetic.grammar import STARS, Grammar, Request
from dpobench.synthetic.lexicon import Lexicon
from dpobench.synthetic.world import ASPECTS, DEFAULT

PLACE = next(place for place in DEFAULT.places if place.kind == "cafe")
REQUEST = Request(PLACE, "Friday", "morning")
SMALL = Lexicon(
    adjectives={-2: ("awful",), -1: ("poor",), 0: ("plain",), 1: ("good", "nice"), 2: ("superb",)},
    verbs={-2: ("hated",), -1: ("avoided",), 0: ("saw",), 1: ("liked",), 2: ("loved",)},
    intensity={"": 1.0, "very": 1.25},
    intensifier_odds={0: {"": 1.0}, 1: {"": 0.6, "very": 0.4}, 2: {"": 1.0}},
    counts={1: 0.7, 2: 0.3},
    openings={"I spent {day} {part} at the {name} in {town}.": 1.0},
    endings={"I give it {stars}.": 0.6, "My rating is {stars}.": 0.4},
)


def every_text() -> list[str]:
    """All texts of the small grammar, written out without asking it."""
    adjectives = ["awful", "poor", "very poor", "plain", "good", "very good", "nice", "very nice", "superb"]
    topics = {}
    for noun, plural in ASPECTS["cafe"]:
        statements = [f"The {noun} {'were' if plural else 'was'} {adjective}." for adjective in adjectives]
        topics[noun] = statements + [f"I {verb} the {noun}." for verb in ("hated", "avoided", "saw", "liked", "loved")]
    topics["owner"] = [f"The owner {PLACE.owner} was {adjective}." for adjective in adjectives]
    topics["door"] = [f"The {PLACE.colour} door looked {adjective}." for adjective in adjectives]
    bodies = [(statement,) for group in topics.values() for statement in group]
    bodies += [pair for first, second in permutations(topics, 2) for pair in product(topics[first], topics[second])]
    opening = f"I spent Friday morning at the {PLACE.name} in {PLACE.town}."
    endings = [pattern.format(stars) for pattern in ("I give it {}.", "My rating is {}.") for stars in STARS]
    return [" ".join([opening, *body, ending]) for body, ending in product(bodies, endings)]


def test_probabilities_of_all_texts_add_up_to_one() -> None:
    grammar = Grammar(lexicon=SMALL)
    texts = every_text()
    assert len(set(texts)) == len(texts) > 80_000
    assert math.fsum(math.exp(grammar.log_probability(REQUEST, text)) for text in texts) == pytest.approx(1, abs=1e-9)


def test_a_text_has_the_probability_worked_out_by_hand() -> None:
    text = f"I spent Friday morning at the {PLACE.name} in {PLACE.town}. The cake was very good. I give it five stars."
    total = 0.0
    for attitude in (-2, -1, 0, 1, 2):
        weights = {level: math.exp(-((level - attitude) ** 2) / (2 * 0.8**2)) for level in (-2, -1, 0, 1, 2)}
        level = weights[1] / sum(weights.values())
        stars = {2: 0.85, 1: 0.15}.get(attitude, 0.0)
        total += 0.2 * level * 0.4 / 2 * stars
    expected = math.log(0.7 * (1 / 8) * 0.6 * 0.6 * total)
    assert Grammar(lexicon=SMALL).log_probability(REQUEST, text) == pytest.approx(expected, abs=1e-12)


def test_a_draw_is_as_frequent_as_its_probability_says() -> None:
    grammar, rng = Grammar(lexicon=SMALL), random.Random(1)
    draws = 40_000
    counts = Counter(grammar.write(REQUEST, rng) for _ in range(draws))
    for text, count in counts.most_common(20):
        expected = draws * math.exp(grammar.log_probability(REQUEST, text))
        assert abs(count - expected) < 4.5 * math.sqrt(expected)


@pytest.mark.parametrize("tone", ["", "harsh", "kind"])
def test_what_the_grammar_writes_is_possible_and_clean(tone: str) -> None:
    grammar, rng = Grammar(), random.Random(2)
    for request in rng.sample(grammar.requests((tone,)), 100):
        text = grammar.write(request, rng)
        assert math.isfinite(grammar.log_probability(request, text))
        prompt = f"How was the {request.place.name} on {request.day} {request.part}?"
        assert is_clean(score(prompt, text))


@pytest.mark.parametrize(
    "change",
    [
        ("The cake was good.", "The cake were good."),
        ("The cake was good.", "The pond was good."),
        ("The cake was good.", "The cake was truly good."),
        ("The cake was good.", "The cake was good. I liked the cake."),
        ("The cake was good.", "The cake  was good."),
        ("Friday", "Sunday"),
        (" I give it two stars.", ""),
    ],
)
def test_what_the_grammar_cannot_write_has_no_probability(change: tuple[str, str]) -> None:
    text = f"I spent Friday morning at the {PLACE.name} in {PLACE.town}. The cake was good. I give it two stars."
    grammar = Grammar()
    assert math.isfinite(grammar.log_probability(REQUEST, text))
    assert grammar.log_probability(REQUEST, text.replace(*change)) == -math.inf


def test_a_tone_narrows_the_attitude() -> None:
    grammar, rng = Grammar(), random.Random(3)
    request = Request(PLACE, "Friday", "morning", "harsh")
    text = grammar.write(request, rng, attitude=-2)
    kind = Request(PLACE, "Friday", "morning", "kind")
    plain = [grammar.log_probability(r, text) for r in (request, REQUEST, kind)]
    assert plain[0] > plain[1] > plain[2]
    mixture = 0.4 * math.exp(plain[0]) + 0.4 * math.exp(plain[2])
    assert mixture < math.exp(plain[1])
