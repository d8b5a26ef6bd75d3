"""What every checkpoint is scored on: the same prompts, pairs, tasks and sampling settings for all."""

import hashlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import pandas as pd

    from dpobench.tokens import TokenPair

Split = Literal["selection", "test"]
Once = Callable[[Hashable, Callable[[], Any]], Any]
Message = Mapping[str, str]


@dataclass(frozen=True)
class Prompt:
    """One held-out prompt.

    Args:
        id: hash of its messages: stable over files, orders and machines.
        messages: the dialogue so far, `{"role": ..., "content": ...}` each; the last is the user's.
        token_ids: the prompt as the model reads it, generation prompt included.
        chosen: the data set's preferred answer, where there is one.
    """

    id: str
    messages: tuple[Message, ...]
    token_ids: tuple[int, ...] = ()
    chosen: str | None = None

    @property
    def text(self) -> str:
        """Content of the last message."""
        return self.messages[-1]["content"]

    @property
    def split(self) -> Split:
        """Half the prompts choose the strength, the other half is reported; decided by hash, once and for all."""
        return split_of(self.id)


def split_of(prompt: str) -> Split:
    """The side of the selection/test split a prompt id falls on."""
    return "selection" if hashlib.sha256(f"split:{prompt}".encode()).digest()[0] < 128 else "test"


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn, alike for every checkpoint. The defaults sample from the model's own distribution.

    Args:
        draws: answers per prompt.
        max_new_tokens: where an answer is cut; the share of cut answers is reported.
        temperature: 1.0 is the model itself.
        top_p: 1.0 keeps all tokens.
        top_k: 0 keeps all tokens.
        batch: answers drawn at a time; the same for every checkpoint.
        seed: of the draws; the run's own seed is mixed in.
    """

    draws: int = 1
    max_new_tokens: int = 128
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    batch: int = 256
    seed: int = 0

    @property
    def is_policy(self) -> bool:
        """Whether samples follow the model's own distribution, as every KL estimate requires."""
        return self.temperature == 1.0 and self.top_p == 1.0 and self.top_k == 0


def _no_answers() -> "pd.DataFrame":
    import pandas as pd

    return pd.DataFrame({name: [] for name in ("prompt", "draw", "text", "token_ids", "ended")})


def keep_nothing(name: str, frame: "pd.DataFrame") -> None:
    """Let a table go."""


def each_time(what: Hashable, compute: Callable[[], Any]) -> Any:
    """Keep nothing."""
    return compute()


@dataclass(frozen=True)
class Aim:
    """One of several aims: a judge of either kind, or a set of held-out pairs.

    Args:
        judge: as `HeldOut.judge`.
        pairwise: as `HeldOut.pairwise`.
        pairs: as `HeldOut.pairs`.
        key: content key of the judge.
    """

    judge: Callable[[Sequence[Prompt], Sequence[str]], Any] | None = None
    pairwise: Callable[[Sequence[Prompt], Sequence[str], Sequence[str]], Any] | None = None
    pairs: "Sequence[TokenPair]" = ()
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
            where there is no judge, or one that scores. To be asked through `dpobench.verdicts`, in both orders.
        opponents: whose answers a checkpoint's are compared with: "reference", "chosen".
        pool: further answers of the reference, columns as `samples`; no run is compared with them.
        objectives: several aims beside the judge's, by name.
        keep: `keep(name, frame)` writes a table beside the scores, for what is no score.
        unaltered: the checkpoint's and the reference's answers drawn from the models' own distributions, where `samples` are not
            and an evaluator needs "unaltered"; None elsewhere.
        sampling: how the samples were drawn.
        once: `once(name, compute)` is what `compute()` returns, computed once for all checkpoints that one process scores on
            these inputs. Only for what depends on the reference, the held-out inputs, the judge and what the name tells, and
            never on the policy. Random numbers start alike in `compute`, whichever checkpoint comes first.
    """

    prompts: Sequence[Prompt]
    samples: "pd.DataFrame"
    reference_samples: "pd.DataFrame"
    pairs: "Sequence[TokenPair]" = ()
    tasks: Sequence[str] = ()
    task_folders: Sequence[Path] = ()
    judge: Callable[[Sequence[Prompt], Sequence[str]], Any] | None = None
    pairwise: Callable[[Sequence[Prompt], Sequence[str], Sequence[str]], Any] | None = None
    opponents: Sequence[str] = ("reference", "chosen")
    pool: "pd.DataFrame" = field(default_factory=_no_answers)
    objectives: Mapping[str, Aim] = field(default_factory=dict)
    keep: "Callable[[str, pd.DataFrame], None]" = keep_nothing
    unaltered: "tuple[pd.DataFrame, pd.DataFrame] | None" = None
    sampling: Sampling = field(default_factory=Sampling)
    once: Once = each_time
