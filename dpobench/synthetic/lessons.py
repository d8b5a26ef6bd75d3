"""Knowledge that preference optimisation should not destroy: facts about the places, sequences and sums."""

from dataclasses import dataclass

from dpobench.synthetic.world import COLOURS, DAYS, KINDS, MONTHS, NUMBERS, OWNERS, TOWNS, Relation, World


@dataclass(frozen=True)
class Lesson:
    """A question with its one right answer.

    Args:
        question: what the user asks.
        answer: pattern of the answer with one slot, `{}`.
        right: what belongs in the slot.
        options: everything that could fill the slot, the right answer included.

    Example:
        >>> Lesson("What is one plus one?", "The answer is {}.", "two", ("two", "three")).text
        'The answer is two.'
    """

    question: str
    answer: str
    right: str
    options: tuple[str, ...]

    @property
    def text(self) -> str:
        """The right answer in full."""
        return self.answer.format(self.right)


_FACTS: tuple[tuple[Relation, tuple[str, str], str, tuple[str, ...]], ...] = (
    ("kind", ("What kind of place is the {}?", "What is the {}?"), "The {} is a {{}}.", KINDS),
    ("town", ("Which town is the {} in?", "Where is the {}?"), "The {} is in {{}}.", TOWNS),
    ("owner", ("Who is the owner of the {}?", "Who has the {}?"), "The owner of the {} is {{}}.", OWNERS),
    ("colour", ("Which colour is the door of the {}?", "What is the door of the {} like?"),
     "The door of the {} is {{}}.", COLOURS),
)  # fmt: skip


def facts(world: World) -> list[Lesson]:
    """Two questions about each of the four facts of each place."""
    return [
        Lesson(question.format(place.name), answer.format(place.name), place.fact(relation), options)
        for relation, questions, answer, options in _FACTS
        for question in questions
        for place in world.places
    ]


def sequences() -> list[Lesson]:
    """What comes before and after each day, month and number; the first day follows the last, and so with months."""
    lessons = []
    for noun, items, cyclic in (("day", DAYS, True), ("month", MONTHS, True), ("number", NUMBERS, False)):
        for word, step in (("after", 1), ("before", -1)):
            for index, item in enumerate(items):
                if cyclic or 0 <= index + step < len(items):
                    neighbour = items[(index + step) % len(items)]
                    question = f"Which {noun} comes {word} {item}?"
                    lessons.append(
                        Lesson(
                            question, "The answer is {}.", neighbour, tuple(other for other in items if other != item)
                        )
                    )
    return lessons


def sums() -> list[Lesson]:
    """Sums of two numbers from one to six."""
    return [
        Lesson(f"What is {NUMBERS[a]} plus {NUMBERS[b]}?", "The answer is {}.", NUMBERS[a + b], NUMBERS[2:13])
        for a in range(1, 7)
        for b in range(1, 7)
    ]
