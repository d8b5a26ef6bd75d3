"""The evaluators and the judges: how they are declared, and where they lie."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dpobench.errors import UserError
from dpobench.evaluation.spec import Evaluator, EvaluatorSpec, Judge, JudgeSpec
from dpobench.plugins.registry import Function, Registry, declare

if TYPE_CHECKING:
    from dpobench.artifacts.scores import Metric


def evaluator(
    *,
    metrics: "Mapping[str, Metric]",
    needs: Sequence[str] = (),
    reference_only: bool = False,
    within: bool = False,
    at_reference: Mapping[str, float] | None = None,
) -> Callable[[Function], Function]:
    """Register an evaluator: `(checkpoint, held_out, **settings)` to a table of scores, one row per prompt and draw.

    Args:
        metrics: name of each metric to its `Metric` (unit, direction, role); "*" stands for names known only at run time.
        needs: what must be there: "judge", "pairs", "pool", "tasks", "objectives"; "on_policy" for answers that follow the policy's
            own distribution, drawn where those to be compared do not. An evaluator whose needs are not met is left out, and the
            report says so.
        reference_only: whether it scores the reference alone: what it says is true of the inputs or of the judge.
        within: whether it scores checkpoints within a training, too; of these there are many.
        at_reference: value of a metric in every row where the reference is scored against itself, by name of the metric.

    Example:
        >>> from dpobench import Metric, score_rows
        >>> @evaluator(metrics={"letters": Metric("letters", "none", label="letters")})
        ... def letters(checkpoint, held_out):
        ...     '''Letters of an answer.'''
        ...     answers = held_out.samples
        ...     return score_rows(answers["prompt"], "letters", answers["text"].str.len(), draws=answers["draw"])
        >>> letters.__name__
        'letters'
    """
    if isinstance(needs, str):
        raise UserError(f"needs = {needs!r}: a list is expected; write needs=({needs!r},)")
    spec = EvaluatorSpec(
        metrics=dict(metrics),
        needs=tuple(needs),
        reference_only=reference_only,
        within=within,
        at_reference=dict(at_reference or {}),
    )
    return declare(spec)


def judge(
    *,
    pointwise: bool,
    check: Callable[..., None] | None = None,
    estimate: Callable[..., object] | None = None,
    idle: Sequence[str] = (),
    deterministic: bool = True,
) -> Callable[[Function], Function]:
    """Register a judge.

    A pointwise judge maps `(prompts, completions, **settings)` to a table with a row per answer: `score`, NaN for no verdict,
    and further numbers it consists of. Any other maps `(prompts, first, second, **settings)` to a table with a row per
    comparison as shown in that order: `p_first`, the probability in [0, 1] that the first is better, NaN for no verdict;
    `verdict`, one of first, second, tie, unparsable, error; `raw`, the reply; `tokens`; `latency` in seconds; `cost`.
    The harness calls it in both orders, and once more where a verdict is missing. To store replies, see `judge_cache`.

    Args:
        pointwise: true if the function maps prompts and completions to scores, false if it compares two completions.
        check: `(**settings)`, called once before anything is computed; raises `UserError` where the settings cannot work.
        estimate: `(comparisons, prompt_tokens, answer_tokens, **settings)` to what so many comparisons would cost, in a line.
        idle: settings that decide no verdict, such as a budget; of a table of settings one by "table.name". Another value of theirs
            scores nothing anew.
        deterministic: whether a verdict is the same every time, whatever other answers are judged in the same call.

    Example:
        >>> import pandas as pd
        >>> @judge(pointwise=True)
        ... def brief(prompts, completions):
        ...     '''The fewer letters the better.'''
        ...     return pd.DataFrame({"score": [-float(len(text)) for text in completions]})
        >>> brief(["Is it?", "Is it?"], ["Yes.", "Yes, it is."])["score"].tolist()
        [-4.0, -11.0]
    """
    spec = JudgeSpec(
        pointwise=pointwise,
        check=check,
        estimate=estimate,
        idle=tuple(idle),
        deterministic=deterministic,
    )
    return declare(spec)


@dataclass
class EvaluatorRegistry(Registry[EvaluatorSpec, Evaluator]):
    """The evaluators."""

    kind: str = "evaluator"
    package: str = "dpobench.evals"
    declaration: Callable[..., Any] = evaluator
    spec_type: type[EvaluatorSpec] = EvaluatorSpec
    plugin_type: type[Evaluator] = Evaluator


@dataclass
class JudgeRegistry(Registry[JudgeSpec, Judge]):
    """The judges."""

    kind: str = "judge"
    package: str = "dpobench.evals.judges"
    declaration: Callable[..., Any] = judge
    spec_type: type[JudgeSpec] = JudgeSpec
    plugin_type: type[Judge] = Judge


evaluators = EvaluatorRegistry()
judges = JudgeRegistry()
