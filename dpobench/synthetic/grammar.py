"""The probabilistic grammar of the world: it writes every text, and knows the exact log-probability of each review."""

import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import product
from typing import TypeVar

from dpobench.synthetic.lexicon import ATTITUDES, Lexicon
from dpobench.synthetic.world import ASPECTS, COLOURS, DAYS, DEFAULT, OWNERS, PARTS, TOWNS, Place, World

REVIEW_PROMPTS = (
    "How was your {day} {part} at the {name}?",
    "How was the {name} on {day} {part}?",
    "Tell me about your {day} {part} at the {name}.",
    "Tell me about the {name} on {day} {part}.",
    "What was the {name} like on {day} {part}?",
    "What did you think of the {name} on {day} {part}?",
    "Please review the {name} for {day} {part}.",
    "Write about your {day} {part} at the {name}.",
)
STEERED_PROMPTS = (
    "Write a {tone} review of the {name} on {day} {part}.",
    "Be {tone} about your {day} {part} at the {name}.",
)
TONES: Mapping[str, tuple[int, ...]] = {
    "harsh": (-2, -1), "bitter": (-2, -1), "glowing": (1, 2), "kind": (1, 2),
}  # fmt: skip
STARS = ("one star", "two stars", "three stars", "four stars", "five stars")
OWNER, DOOR = "owner", "door"
# Each noun with its kind of place, and whether it is a plural.
_NOUNS = {noun: (kind, plural) for kind, nouns in ASPECTS.items() for noun, plural in nouns}

_Outcome = TypeVar("_Outcome")


@dataclass(frozen=True)
class Request:
    """What a review prompt asks for.

    Args:
        place: the place to review.
        day: of the visit.
        part: of the day.
        tone: "" or one of `TONES`.
    """

    place: Place
    day: str
    part: str
    tone: str = ""

    @property
    def attitudes(self) -> tuple[int, ...]:
        """Attitudes that fit the tone, equally likely; see `dpobench.synthetic.lexicon.ATTITUDES`."""
        return TONES[self.tone] if self.tone else ATTITUDES

    def fill(self, pattern: str, **more: str) -> str:
        """A pattern with its slots filled: day, part and tone from the prompt, name and town from the place, others from `more`."""
        place = self.place
        return pattern.format(day=self.day, part=self.part, name=place.name, town=place.town, tone=self.tone, **more)


@dataclass(frozen=True)
class Sentence:
    """One parsed sentence.

    Args:
        kind: "opening", "statement", "ending", or "" if it is no sentence of the grammar.
        pattern: which pattern it follows.
        slots: words that fill the pattern.
    """

    kind: str
    pattern: str = ""
    slots: Mapping[str, str] = field(default_factory=dict)

    @property
    def topic(self) -> str:
        """What a statement is about: a noun, "owner" or "door"."""
        return self.slots.get("noun", OWNER if "owner" in self.slots else DOOR)


_ADJECTIVE = "The {noun} {be} {degree}{adjective}."
_VERB = "I {verb} the {noun}."
_OWNER = "The owner {owner} was {degree}{adjective}."
_DOOR = "The {colour} door looked {degree}{adjective}."


def _one_of(words: Sequence[str]) -> str:
    return "|".join(sorted(words, key=len, reverse=True))


def _topics(place: Place) -> list[str]:
    """Topics of statements about a place."""
    return [*(noun for noun, _ in ASPECTS[place.kind]), OWNER, DOOR]


class Grammar:
    """The review grammar over a world.

    Args:
        world: places and the facts about them.
        lexicon: words and odds.

    Example:
        >>> grammar = Grammar()
        >>> request = grammar.read_prompt("How was the Little Comet on Monday morning?")
        >>> [sentence.kind for sentence in grammar.read(grammar.write(request, random.Random(0)))]
        ['opening', 'statement', 'statement', 'statement', 'ending']
    """

    def __init__(self, world: World = DEFAULT, lexicon: Lexicon | None = None) -> None:
        self.world = world
        self.lexicon = lexicon or Lexicon()

    @cached_property
    def levels(self) -> Mapping[str, int]:
        """Level of each adjective and verb."""
        words = [*self.lexicon.adjectives.items(), *self.lexicon.verbs.items()]
        return {word: level for level, group in words for word in group}

    @cached_property
    def level_odds(self) -> Mapping[int, Mapping[int, float]]:
        """Odds of a statement's level, by attitude."""
        table = {}
        for attitude in ATTITUDES:
            weight = {level: math.exp(-0.5 * ((level - attitude) / self.lexicon.spread) ** 2) for level in ATTITUDES}
            table[attitude] = {level: value / sum(weight.values()) for level, value in weight.items()}
        return table

    @cached_property
    def star_odds(self) -> Mapping[int, Mapping[int, float]]:
        """Odds of the number of stars (1 to 5), by attitude; one star less than one is one, one more than five is five."""
        table: dict[int, dict[int, float]] = {}
        for attitude in ATTITUDES:
            slip, odds = self.lexicon.star_slip, dict.fromkeys(range(1, 6), 0.0)
            for step, share in ((-1, slip), (0, 1 - 2 * slip), (1, slip)):
                odds[min(5, max(1, attitude + 3 + step))] += share
            table[attitude] = odds
        return table

    @staticmethod
    def _draw(odds: Mapping[_Outcome, float], rng: random.Random) -> _Outcome:
        return rng.choices(tuple(odds), tuple(odds.values()))[0]

    def write(self, request: Request, rng: random.Random, attitude: int | None = None) -> str:
        """Draw a review.

        Args:
            request: what the prompt asks for.
            rng: source of the draws.
            attitude: of the review; None draws it.
        """
        if attitude is None:
            attitude = rng.choice(request.attitudes)
        topics = rng.sample(_topics(request.place), self._draw(self.lexicon.counts, rng))
        stars = STARS[self._draw(self.star_odds[attitude], rng) - 1]
        return " ".join(
            [
                request.fill(self._draw(self.lexicon.openings, rng)),
                *(self.statement(request.place, topic, attitude, rng) for topic in topics),
                request.fill(self._draw(self.lexicon.endings, rng), stars=stars),
            ]
        )

    def statement(self, place: Place, topic: str, attitude: int, rng: random.Random) -> str:
        """Draw a true statement on a topic.

        Args:
            place: of which it is true.
            topic: a noun of the place, "owner" or "door".
            attitude: around which its level is drawn.
            rng: source of the draws.
        """
        level = self._draw(self.level_odds[attitude], rng)
        if topic in _NOUNS and rng.random() < self.lexicon.verb_odds:
            return _VERB.format(verb=rng.choice(self.lexicon.verbs[level]), noun=topic)
        degree = self._draw(self.lexicon.intensifier_odds[abs(level)], rng)
        return self._described(place, topic, degree, rng.choice(self.lexicon.adjectives[level]))

    @staticmethod
    def _described(place: Place, topic: str, degree: str, adjective: str) -> str:
        """A true statement with an adjective."""
        words = {"degree": degree + " " if degree else "", "adjective": adjective}
        if topic == OWNER:
            return _OWNER.format(owner=place.owner, **words)
        if topic == DOOR:
            return _DOOR.format(colour=place.colour, **words)
        return _ADJECTIVE.format(noun=topic, be="were" if _NOUNS[topic][1] else "was", **words)

    def write_best(self, request: Request, statements: int, rng: random.Random) -> str:
        """Draw a review in which every statement has the highest sentiment that the grammar allows.

        Args:
            request: what the prompt asks for.
            statements: number of statements.
            rng: source of the draws.
        """
        level = max(self.lexicon.adjectives)
        degree = max(self.lexicon.intensifier_odds[level], key=self.lexicon.intensity.__getitem__)
        adjectives = self.lexicon.adjectives[level]
        return " ".join(
            [
                request.fill(self._draw(self.lexicon.openings, rng)),
                *(
                    self._described(request.place, topic, degree, rng.choice(adjectives))
                    for topic in rng.sample(_topics(request.place), statements)
                ),
                request.fill(self._draw(self.lexicon.endings, rng), stars=STARS[-1]),
            ]
        )

    @cached_property
    def _readers(self) -> list[tuple[str, str, re.Pattern[str]]]:
        adjectives = [word for words in self.lexicon.adjectives.values() for word in words]
        verbs = [word for words in self.lexicon.verbs.values() for word in words]
        slots = {
            "day": _one_of(DAYS), "part": _one_of(PARTS), "name": r"\w+ \w+", "town": _one_of(TOWNS),
            "stars": _one_of(STARS), "noun": _one_of(list(_NOUNS)), "be": "was|were", "verb": _one_of(verbs),
            "adjective": _one_of(adjectives), "owner": _one_of(OWNERS), "colour": _one_of(COLOURS),
        }  # fmt: skip
        degree = _one_of([word for word in self.lexicon.intensity if word])
        filled = {slot: f"(?P<{slot}>{words})" for slot, words in slots.items()}
        filled["degree"] = f"(?:(?P<degree>{degree}) )?" if degree else ""
        patterns = [("statement", pattern) for pattern in (_ADJECTIVE, _VERB, _OWNER, _DOOR)]
        patterns += [("opening", pattern) for pattern in self.lexicon.openings]
        patterns += [("ending", pattern) for pattern in self.lexicon.endings]
        return [(kind, p, re.compile(p.replace(".", r"\.").format(**filled))) for kind, p in patterns]

    def read(self, text: str) -> list[Sentence]:
        """Parse a text sentence by sentence.

        Args:
            text: any text; what no pattern matches becomes a sentence of kind "".
        """
        pieces = re.findall(r"[^.]*\.|[^.]+$", text)
        return [self._read_sentence(piece.strip()) for piece in pieces if piece.strip()]

    @lru_cache(maxsize=65536)  # noqa: B019 - a grammar lives as long as its process, and sentences repeat
    def _read_sentence(self, text: str) -> Sentence:
        for kind, pattern, reader in self._readers:
            if match := reader.fullmatch(text):
                slots = {slot: word for slot, word in match.groupdict().items() if word is not None}
                return Sentence(kind, pattern, slots)
        return Sentence("")

    def agrees(self, sentence: Sentence) -> bool:
        """Whether "was" or "were" agrees in number with the noun."""
        be = sentence.slots.get("be")
        return be is None or (be == "were") == _NOUNS[sentence.slots["noun"]][1]

    def is_true(self, sentence: Sentence, request: Request) -> bool:
        """Whether everything in a sentence is true of the place and the visit."""
        place, slots = request.place, sentence.slots
        truth = {"name": place.name, "town": place.town, "owner": place.owner, "colour": place.colour}
        truth |= {"day": request.day, "part": request.part}
        if "noun" in slots and _NOUNS[slots["noun"]][0] != place.kind:
            return False
        return all(slots.get(slot, value) == value for slot, value in truth.items())

    def sentiment(self, sentence: Sentence) -> float:
        """Level of a statement times its intensifier's factor, -3 to 3."""
        word = sentence.slots.get("adjective") or sentence.slots["verb"]
        return self.levels[word] * self.lexicon.intensity[sentence.slots.get("degree", "")]

    def log_probability(self, request: Request, text: str) -> float:
        """Exact log-probability of a review, summed over the attitudes.

        Args:
            request: what the prompt asks for.
            text: of the review.

        Returns: nats; the end of the text is part of it; minus infinity if the grammar cannot write the text.
        """
        sentences = self.read(text)
        kinds = [sentence.kind for sentence in sentences]
        statements = sentences[1:-1]
        count = len(statements)
        if kinds != ["opening", *["statement"] * count, "ending"] or count not in self.lexicon.counts:
            return -math.inf
        if len({s.topic for s in statements}) < count or " ".join(text.split()) != text:
            return -math.inf
        if not all(self.agrees(s) and self.is_true(s, request) for s in sentences):
            return -math.inf
        opening, ending = self.lexicon.openings[sentences[0].pattern], self.lexicon.endings[sentences[-1].pattern]
        topics = len(ASPECTS[request.place.kind]) + 2
        fixed = self.lexicon.counts[count] * opening * ending / math.perm(topics, count)
        stars = STARS.index(sentences[-1].slots["stars"]) + 1
        by_attitude = [
            self.star_odds[attitude][stars] * math.prod(self._statement_odds(s, attitude) for s in statements)
            for attitude in request.attitudes
        ]
        total = fixed * sum(by_attitude) / len(by_attitude)
        return math.log(total) if total > 0 else -math.inf

    def _statement_odds(self, sentence: Sentence, attitude: int) -> float:
        """Probability of a statement given its topic and the attitude."""
        slots, lexicon = sentence.slots, self.lexicon
        level = self.levels[slots.get("adjective") or slots["verb"]]
        odds = self.level_odds[attitude][level]
        if "verb" in slots:
            return odds * lexicon.verb_odds / len(lexicon.verbs[level])
        form = 1 - lexicon.verb_odds if "noun" in slots else 1.0
        degree = lexicon.intensifier_odds[abs(level)].get(slots.get("degree", ""), 0.0)
        return odds * form * degree / len(lexicon.adjectives[level])

    def review_prompts(self) -> list[str]:
        """Every plain review prompt of the world."""
        return self._prompts(REVIEW_PROMPTS, ("",))

    def steered_prompts(self) -> list[str]:
        """Every prompt that asks for a tone."""
        return self._prompts(STEERED_PROMPTS, tuple(TONES))

    def _prompts(self, patterns: Sequence[str], tones: Sequence[str]) -> list[str]:
        return [request.fill(p) for p, request in product(patterns, self.requests(tones))]

    def requests(self, tones: Sequence[str] = ("",)) -> list[Request]:
        """Every visit that a prompt can ask for, in the given tones."""
        return [Request(*fields) for fields in product(self.world.places, DAYS, PARTS, tones)]

    @cached_property
    def _prompt_readers(self) -> list[re.Pattern[str]]:
        slots = {"day": _one_of(DAYS), "part": _one_of(PARTS), "name": _one_of(list(self.world.by_name))}
        filled = {slot: f"(?P<{slot}>{words})" for slot, words in (slots | {"tone": _one_of(list(TONES))}).items()}
        escaped = [p.replace(".", r"\.").replace("?", r"\?") for p in (*REVIEW_PROMPTS, *STEERED_PROMPTS)]
        return [re.compile(pattern.format(**filled)) for pattern in escaped]

    def read_prompt(self, text: str) -> Request | None:
        """What a review prompt asks for; None if it is no review prompt of this world.

        Args:
            text: of the prompt.
        """
        for reader in self._prompt_readers:
            if match := reader.fullmatch(text.strip()):
                slots = match.groupdict()
                return Request(self.world.by_name[slots["name"]], slots["day"], slots["part"], slots.get("tone") or "")
        return None
