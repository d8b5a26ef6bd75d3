"""Studies: what of an experiment is changed, one thing at a time."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from dpobench.artifacts.files import digest
from dpobench.artifacts.records import Condition
from dpobench.errors import UserError
from dpobench.training.run import Run

# Tried where the study is asked for without values.
QUALITIES = (0.1, 0.3)


class Studies(BaseModel):
    """What is changed besides the main experiment. Studies are not crossed: every value is one condition of its own.

    Args:
        label_noise: shares of the training pairs whose label is flipped; 0 is the main experiment.
        train_size: numbers of training pairs; all of them are the main experiment.
        reference_quality: shares of the embedded base model's training steps; 1 is the main experiment.
        rounds: of preference optimisation: from the second on, each starts from the policy of the one before and trains on
            that policy's answers as the judge ranks them.
        answers: that the policy gives to each training prompt before a further round; a judge that scores one answer at a time
            has the best and the worst of them compared.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    label_noise: tuple[Annotated[float, Field(ge=0, le=1)], ...] = ()
    train_size: tuple[Annotated[int, Field(ge=1)], ...] = ()
    reference_quality: tuple[Annotated[float, Field(gt=0, le=1)], ...] = ()
    rounds: int = Field(1, ge=1, le=50)
    answers: int = Field(2, ge=2)

    def conditions(self, pairs: int | None = None) -> list[Condition]:
        """What is trained besides the main experiment, the rounds left out, because they follow one another.

        Args:
            pairs: number of training pairs, where it is known; that size is the main experiment.
        """
        noise = [Condition(label_noise=share) for share in self.label_noise if share > 0]
        sizes = [Condition(train_size=size) for size in self.train_size if size != pairs]
        return noise + sizes + [Condition(reference_quality=share) for share in self.reference_quality if share < 1]

    @property
    def later_rounds(self) -> range:
        """Numbers of the rounds after the first, which is the main experiment."""
        return range(2, self.rounds + 1)

    def check(self, batch: int) -> None:
        """Refuse what no data could mend.

        Raises:
            UserError: a value named twice, or fewer training pairs than a batch holds.
        """
        for name in ("label_noise", "train_size", "reference_quality"):
            values = getattr(self, name)
            if twice := [value for value in values if values.count(value) > 1]:
                raise UserError(f"studies.{name}: {twice[0]} is named twice")
        if small := [size for size in self.train_size if size < batch]:
            raise UserError(
                f"studies.train_size = {small[0]}, but recipe.batch = {batch}; choose more pairs or a smaller batch"
            )

    def check_size(self, pairs: int) -> None:
        """Refuse more training pairs than there are.

        Raises:
            UserError: a size is above the number of training pairs.
        """
        if large := [size for size in self.train_size if size > pairs]:
            raise UserError(
                f"studies.train_size = {large[0]:,}, but there are {pairs:,} training pairs; choose {pairs:,} at most"
            )


def describe(condition: Condition) -> str:
    """A condition in a few words; nothing for the main experiment."""
    return " ".join(
        f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in condition.changed.items()
    )


def successor(run: Run, number: int, key: str) -> Run:
    """The run of a later round, which starts from the policy of another one.

    Args:
        run: the one before it.
        number: of the round.
        key: of all else that decides its training pairs: the prompts, how answers are drawn, the judge.
    """
    return run.model_copy(update={"reference": digest("round", run.id, key), "condition": Condition(round=number)})
