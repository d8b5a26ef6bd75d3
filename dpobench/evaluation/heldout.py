"""What every checkpoint is scored on: the same prompts, pairs, tasks and sampling settings for all."""

import hashlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol, TypeAlias, TypeVar

import pandas as pd

from dpobench.data.prompts import Prompt
from dpobench.data.tokens import TokenPair
from dpobench.errors import DpobenchError
from dpobench.evaluation.pairwise import PairwiseJudge
from dpobench.models.generate import COLUMNS, Sampling

PointwiseJudge: TypeAlias = Callable[[Sequence[Prompt], Sequence[str]], pd.DataFrame]
"""A judge that scores, its settings filled in: N prompts and an answer to each give a table of N rows with column `score`."""

T = TypeVar("T")


class ComputeOnce(Protocol):
    """A cache of values that are the same for every checkpoint."""

    def __call__(self, key: Hashable, compute: Callable[[], T], /) -> T:
        """What `compute()` returns, computed for the first checkpoint that needs it.

        Args:
            key: tells the value from all others on the same held-out inputs.
            compute: makes the value; it must not depend on the policy.
        """
        ...


def compute_each_time(key: Hashable, compute: Callable[[], T], /) -> T:
    """Compute without a cache."""
    return compute()


def discard_table(name: str, frame: pd.DataFrame) -> None:
    """Write nothing."""


def _no_samples() -> pd.DataFrame:
    return pd.DataFrame({name: [] for name in COLUMNS})


class OnPolicySamples(NamedTuple):
    """Answers that follow the models' own distributions: temperature 1, no token left out.

    Args:
        policy: the checkpoint's answers, columns as `HeldOut.samples`.
        reference: the reference's answers to the same prompts.
    """

    policy: pd.DataFrame
    reference: pd.DataFrame


@dataclass(frozen=True)
class ObjectiveInputs:
    """What one of several objectives is measured by: a judge of either kind, or a set of held-out pairs.

    Args:
        judge: as `HeldOut.judge`.
        pairwise: as `HeldOut.pairwise`.
        pairs: as `HeldOut.pairs`.
        key: content key of the judge.
    """

    judge: PointwiseJudge | None = None
    pairwise: PairwiseJudge | None = None
    pairs: Sequence[TokenPair] = ()
    key: str = ""


@dataclass(frozen=True)
class HeldOut:
    """What one checkpoint is scored on.

    Args:
        prompts: held-out prompts, both splits.
        samples: the checkpoint's answers: columns `prompt, draw, text, token_ids, ended`.
        reference_samples: the reference's answers to the same prompts, same settings.
        pairs: held-out preference pairs with the reference's log-probabilities.
        tasks: lm-eval task names.
        task_folders: folders with local task definitions.
        judge: maps prompts and completions to a table with column `score`; None where there is no judge, or one that compares.
        pairwise: maps prompts, first and second completions to a table with a verdict per row, each in the order shown; None
            where there is no judge, or one that scores. Use it through `dpobench.evaluation.pairwise`, which shows both orders.
        opponents: whose answers a checkpoint's are compared with: "reference", "chosen".
        pool: further answers of the reference, columns as `samples`; no run is compared with them.
        objectives: several objectives besides the judge's, by name.
        write_table: `write_table(name, frame)` writes a table next to the scores, for what is no score.
        on_policy: answers drawn from the models' own distributions, where `samples` are drawn otherwise and an evaluator needs
            "on_policy"; None elsewhere.
        sampling: how the samples were drawn.
        compute_once: `compute_once(key, compute)` is what `compute()` returns, computed once for all checkpoints that one process
            scores on these inputs. Only for what depends on the reference, the held-out inputs, the judge and the key, and never
            on the policy. Random numbers start alike in `compute`, whichever checkpoint comes first.

    Example:
        >>> answers = pd.DataFrame({"prompt": ["p"], "draw": [0], "text": ["Yes."], "token_ids": [[4, 1]], "ended": [True]})
        >>> held_out = HeldOut([Prompt("p", ({"role": "user", "content": "Is it?"},))], answers, answers)
        >>> held_out.prompts[0].text, held_out.opponents
        ('Is it?', ('reference', 'chosen'))
    """

    prompts: Sequence[Prompt]
    samples: pd.DataFrame
    reference_samples: pd.DataFrame
    pairs: Sequence[TokenPair] = ()
    tasks: Sequence[str] = ()
    task_folders: Sequence[Path] = ()
    judge: PointwiseJudge | None = None
    pairwise: PairwiseJudge | None = None
    opponents: Sequence[str] = ("reference", "chosen")
    pool: pd.DataFrame = field(default_factory=_no_samples)
    objectives: Mapping[str, ObjectiveInputs] = field(default_factory=dict)
    write_table: Callable[[str, pd.DataFrame], None] = discard_table
    on_policy: OnPolicySamples | None = None
    sampling: Sampling = field(default_factory=Sampling)
    compute_once: ComputeOnce = compute_each_time

    @property
    def prompts_by_id(self) -> dict[str, Prompt]:
        """The prompts, by id."""
        return {prompt.id: prompt for prompt in self.prompts}


Answer: TypeAlias = tuple[str, str]
"""Id of a prompt, and the text of an answer to it."""


def judge_answers(
    judge: PointwiseJudge, prompts: Mapping[str, Prompt], answers: Sequence[Answer], name: str = "the judge"
) -> pd.DataFrame:
    """The table a judge returns for N answers, checked.

    Args:
        judge: a judge that scores.
        prompts: by id, those of the answers at least.
        answers: N of them; the judge gets each one, repeated or not.
        name: how a message calls the judge.

    Returns: N rows in the order of the answers: `score`, NaN where there is no verdict, and the further columns of the judge.

    Raises:
        DpobenchError: the judge returned something else.
    """
    table: object = judge([prompts[prompt] for prompt, _ in answers], [text for _, text in answers])
    if not isinstance(table, pd.DataFrame) or "score" not in table or len(table) != len(answers):
        returned = (
            f"columns {list(table)}, {len(table)} rows" if isinstance(table, pd.DataFrame) else type(table).__name__
        )
        raise DpobenchError(
            f"{name} returned {returned} for {len(answers)} answers; a table with column 'score' and a row per answer is expected"
        )
    return table.reset_index(drop=True)


def pair_prompts(pairs: Sequence[TokenPair]) -> tuple[list[str], list[int]]:
    """How rows of scores name held-out pairs.

    Args:
        pairs: P held-out pairs.

    Returns: P ids of prompts, hashes of their tokens; and P numbers, which count the pairs of one prompt from 0, as draws are.
    """
    prompts = [hashlib.sha256(pair.prompt.tobytes()).hexdigest()[:12] for pair in pairs]
    return prompts, draw_numbers(prompts)


def draw_numbers(prompts: Sequence[str]) -> list[int]:
    """Number the rows of each prompt from 0, in their order.

    Example:
        >>> draw_numbers(["p", "q", "p"])
        [0, 0, 1]
    """
    numbers: list[int] = pd.Series(prompts).groupby(prompts).cumcount().tolist()
    return numbers
