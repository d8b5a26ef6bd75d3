"""A seeded world of 24 places; everything that is true of them is known."""

import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from itertools import product
from typing import Literal

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
PARTS = ("morning", "afternoon", "evening")
MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip
NUMBERS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve",
)  # fmt: skip
TOWNS = ("Eastwick", "Norham", "Southbay", "Westford", "Millbrook", "Ashby")
OWNERS = ("Anna", "Bruno", "Clara", "David", "Elena", "Felix", "Greta", "Hugo", "Irene", "Jonas", "Karla", "Leo")
COLOURS = ("red", "blue", "green", "yellow", "white", "black")

# Nouns of each kind of place, and whether each is a plural.
ASPECTS: Mapping[str, tuple[tuple[str, bool], ...]] = {
    "cafe": (("coffee", False), ("cake", False), ("soup", False), ("tables", True), ("chairs", True), ("cups", True)),
    "museum": (
        ("guide", False), ("hall", False), ("map", False), ("paintings", True), ("statues", True), ("coins", True),
    ),
    "hotel": (
        ("bed", False), ("breakfast", False), ("lobby", False), ("rooms", True), ("towels", True), ("pillows", True),
    ),
    "market": (
        ("bread", False), ("cheese", False), ("fish", False), ("apples", True), ("flowers", True), ("stalls", True),
    ),
    "library": (
        ("silence", False), ("carpet", False), ("desk", False), ("books", True), ("lamps", True), ("shelves", True),
    ),
    "garden": (
        ("pond", False), ("lawn", False), ("fountain", False), ("roses", True), ("paths", True), ("benches", True),
    ),
}  # fmt: skip
KINDS = tuple(ASPECTS)
_FIRST = ("Little", "Golden", "Silver", "Quiet", "Merry", "Old")
_SECOND = (
    "Comet", "Lantern", "Harbour", "Sparrow", "Anchor", "Meadow", "Willow", "Crown", "Otter", "Bridge", "Maple", "Star",
)  # fmt: skip


Relation = Literal["kind", "town", "owner", "colour"]


@dataclass(frozen=True)
class Place:
    """A place and what is true of it.

    Args:
        name: two words; sentences put "the" before them.
        kind: one of `KINDS`.
        town: where it is.
        owner: who owns it.
        colour: of its door.
    """

    name: str
    kind: str
    town: str
    owner: str
    colour: str

    def fact(self, relation: Relation) -> str:
        """The value of a relation."""
        return str(getattr(self, relation))


@dataclass(frozen=True)
class World:
    """All places, by which every statement is true or false.

    Args:
        places: the places, each name once.
    """

    places: tuple[Place, ...]

    @cached_property
    def by_name(self) -> Mapping[str, Place]:
        """Place of each name."""
        return {place.name: place for place in self.places}

    def as_json(self) -> list[dict[str, str]]:
        """The places as JSON holds them."""
        return [asdict(place) for place in self.places]

    @classmethod
    def from_json(cls, places: list[dict[str, str]]) -> "World":
        """The world `as_json` wrote."""
        return cls(tuple(Place(**place) for place in places))


@lru_cache(maxsize=8)
def make_world(seed: int = 0, places: int = 24) -> World:
    """Draw a world.

    Args:
        seed: of the draw. The gold reward reads the world of seed 0.
        places: how many places, at most 72.

    Returns: a world in which kinds, towns, owners and colours are spread as evenly as the number allows, each
        independently of the others.

    Example:
        >>> len(make_world(seed=0).places)
        24
    """
    rng = random.Random(f"world:{seed}")
    names = rng.sample([f"{first} {second}" for first, second in product(_FIRST, _SECOND)], places)

    def spread(values: tuple[str, ...]) -> list[str]:
        repeated = [values[i % len(values)] for i in range(places)]
        rng.shuffle(repeated)
        return repeated

    columns = (names, spread(KINDS), spread(TOWNS), spread(OWNERS), spread(COLOURS))
    return World(tuple(Place(*fields) for fields in zip(*columns, strict=True)))


DEFAULT = make_world()
