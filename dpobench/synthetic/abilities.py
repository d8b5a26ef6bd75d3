"""The world's held-out tasks: name, accuracy of a guess and description; nothing heavy is imported."""

from collections.abc import Mapping

# Answers to choose from, where a task has more than two.
OPTIONS = 4
# Name of a task -> accuracy of a guess (None where nothing is chosen), and what it asks.
DESCRIPTIONS: Mapping[str, tuple[float | None, str]] = {
    "facts": (1 / OPTIONS, "kind, town, owner and door of each place"),
    "sequences": (1 / OPTIONS, "what comes before and after days, months and numbers"),
    "sums": (1 / OPTIONS, "sums of two small numbers"),
    "grammar": (0.5, "minimal pairs of a right and a wrong sentence"),
    "steering": (0.5, "a review in the tone that was asked for, or in the opposite one"),
    "stars": (0.5, "a rating that fits the text, or the opposite one"),
    "reviews": (None, "loss of held-out reviews, nats a text, and the floor that no model can go below"),
}
