"""What every checkpoint is scored on: the same prompts, pairs, tasks and sampling settings for all."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from dpobench.data.tokens import TokenPair
from dpobench.data.prompts import Prompt
from dpobench.models.generate import Sampling

Once = Callable[[Hashable, Callable[[], Any]], Any]


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
            where there is no judge, or one that scores. To be asked through `dpobench.evaluation.pairwise`, in both orders.
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
