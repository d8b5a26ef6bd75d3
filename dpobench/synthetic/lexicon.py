"""Words and odds of the review grammar: everything the probabilities are made of."""

from collections.abc import Mapping
from dataclasses import dataclass, field

# The attitude of a review to its place, from -2 (awful) to 2 (wonderful).
ATTITUDES = (-2, -1, 0, 1, 2)


@dataclass(frozen=True)
class Lexicon:
    """The open choices of the review grammar; all odds of one choice add up to 1.

    Args:
        adjectives: adjectives of each level from -2 (awful) to 2 (wonderful), equally likely.
        verbs: the same for verbs of "I <verb> the <noun>."
        intensity: factor an intensifier puts on the level; "" is no intensifier.
        intensifier_odds: odds of the intensifiers by absolute level.
        counts: odds of the number of statements.
        openings: odds of the first sentence's patterns.
        endings: odds of the last sentence's patterns.
        verb_odds: share of "I <verb> the <noun>." among statements on a noun.
        spread: standard deviation of a statement's level around the attitude of its review, before it is cut to -2..2.
        star_slip: odds that the stars differ from the attitude by one, to each side.
    """

    adjectives: Mapping[int, tuple[str, ...]] = field(
        default_factory=lambda: {
            -2: ("awful", "terrible", "dreadful"),
            -1: ("poor", "dull", "weak"),
            0: ("ordinary", "plain", "usual"),
            1: ("pleasant", "good", "nice"),
            2: ("wonderful", "superb", "delightful"),
        }
    )
    verbs: Mapping[int, tuple[str, ...]] = field(
        default_factory=lambda: {
            -2: ("hated", "loathed"),
            -1: ("disliked", "avoided"),
            0: ("noticed", "saw"),
            1: ("liked", "enjoyed"),
            2: ("loved", "adored"),
        }
    )
    intensity: Mapping[str, float] = field(default_factory=lambda: {"": 1.0, "quite": 0.75, "very": 1.25, "truly": 1.5})
    intensifier_odds: Mapping[int, Mapping[str, float]] = field(
        default_factory=lambda: {
            0: {"": 0.6, "quite": 0.3, "very": 0.1},
            1: {"": 0.4, "quite": 0.3, "very": 0.3},
            2: {"": 0.4, "very": 0.3, "truly": 0.3},
        }
    )
    counts: Mapping[int, float] = field(default_factory=lambda: {1: 0.2, 2: 0.4, 3: 0.25, 4: 0.15})
    openings: Mapping[str, float] = field(
        default_factory=lambda: {
            "I spent {day} {part} at the {name} in {town}.": 0.5,
            "On {day} {part} I was at the {name} in {town}.": 0.3,
            "We saw the {name} in {town} on {day} {part}.": 0.2,
        }
    )
    endings: Mapping[str, float] = field(
        default_factory=lambda: {"I give it {stars}.": 0.6, "My rating is {stars}.": 0.4}
    )
    verb_odds: float = 0.4
    spread: float = 0.8
    star_slip: float = 0.15
