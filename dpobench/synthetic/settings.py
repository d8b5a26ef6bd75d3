"""Settings of the embedded world, checked once."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from dpobench.errors import UnknownName, UserError
from dpobench.synthetic.lexicon import Lexicon
from dpobench.synthetic.world import DEFAULT, World


@dataclass(frozen=True)
class Settings:
    """Everything the world's files depend on. The defaults are the demo's.

    Args:
        seed: of the corpus, the base model, its answers and the labels. The facts of the world never change.
        places: how many of the world's 24 places the corpus speaks of.
        hidden: width of the base model.
        layers: depth of the base model.
        heads: attention heads.
        steps: optimiser steps of the base model.
        batch: dialogues per step.
        learning_rate: highest learning rate of the base model's matrices.
        max_tokens: longest dialogue the model reads, in tokens.
        statements: most statements of a review: 4 in the normal world, 8 in that of longer reviews.
        pairs: preference pairs to train on.
        prompts: held-out prompts, each with one held-out pair.
        reviews: number of held-out reviews on which the base model's loss is measured.
        temperature: of the Bradley-Terry labels, in units of the gold score.
        length_bonus: reward per word that the labels pay on top of the gold score.
        label_noise: share of training labels flipped after they are drawn.
        device: "cpu", "cuda" or "auto".
    """

    seed: int = 0
    places: int = 24
    hidden: int = 64
    layers: int = 3
    heads: int = 4
    steps: int = 340
    batch: int = 40
    learning_rate: float = 0.025
    max_tokens: int = 128
    statements: int = 4
    pairs: int = 2048
    prompts: int = 512
    reviews: int = 256
    temperature: float = 2.0
    length_bonus: float = 0.0
    label_noise: float = 0.0
    device: str = "cpu"

    @classmethod
    def parse(cls, given: Mapping[str, object]) -> "Settings":
        """Settings from the table `[world]` of an experiment file.

        Args:
            given: settings that differ from the defaults.

        Raises:
            UnknownName: there is no such setting.
            UserError: a value of another type or out of range.

        Example:
            >>> Settings.parse({"seed": 1, "pairs": 256}).pairs
            256
        """
        defaults = asdict(cls())
        for name, value in given.items():
            if name not in defaults:
                raise UnknownName("world setting", name, defaults)
            expected = type(defaults[name])
            whole_number = expected is float and type(value) is int
            if type(value) is not expected and not whole_number:
                raise UserError(
                    f"[world] {name} = {value!r}: {expected.__name__} is expected, as in {defaults[name]!r}"
                )
        settings = cls(**(defaults | dict(given)))
        settings._check()
        return settings

    @property
    def world(self) -> World:
        """The part of the default world the corpus speaks of."""
        return World(DEFAULT.places[: self.places])

    @property
    def lexicon(self) -> Lexicon:
        """The default words and odds; longer reviews spread their length evenly."""
        if self.statements == 4:
            return Lexicon()
        return Lexicon(counts=dict.fromkeys(range(1, self.statements + 1), 1 / self.statements))

    def _check(self) -> None:
        limits = {
            "label_noise": (0.0, 0.5),
            "temperature": (1e-6, 1e6),
            "pairs": (1, 10**7),
            "prompts": (2, 1000),
            "reviews": (2, 1000),
            "statements": (1, 8),
            "places": (4, len(DEFAULT.places)),
            "heads": (1, self.hidden),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise UserError(f"[world] {name} = {value!r}: a number from {low} to {high} is expected")
        if self.hidden % (2 * self.heads):
            raise UserError(f"[world] hidden = {self.hidden}: a multiple of twice the heads ({self.heads}) is expected")
        if self.device not in ("cpu", "cuda", "auto"):
            raise UserError(f"[world] device = {self.device!r}: cpu, cuda or auto is expected")
