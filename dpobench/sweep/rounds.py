"""Later rounds: a policy answers the training prompts, the judge ranks its answers, the next policy learns from the ranking."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dpobench.artifacts.files import building, digest, seal, sealed, verify
from dpobench.artifacts.records import AnswerCounts, CountsRecord, GoldsRecord
from dpobench.data.prompts import Prompt, read_prompts, write_prompts
from dpobench.data.tokens import TokenPair, write_pairs
from dpobench.errors import DpobenchError, UserError
from dpobench.evaluation.pairwise import compare, summary
from dpobench.evaluation.plan import ScoringPlan
from dpobench.evaluation.settings import Evaluation
from dpobench.evaluation.spec import JudgeSpec
from dpobench.experiment.studies import Studies
from dpobench.losses.variant import Variant
from dpobench.models.checkpoint import load_model, load_tokenizer
from dpobench.models.generate import STREAM, sample
from dpobench.plugins.plugin import Plugin
from dpobench.sweep.inputs import Inputs, Say
from dpobench.sweep.prepare import with_reference, write_provenance
from dpobench.training.reference import PAIRS
from dpobench.training.run import Recipe

_SCORES, _CHANCE = ("score_chosen", "score_rejected"), ("win_probability",)
# Places of the best and the worst answer, and the columns that the ranking gives the pair.
Ranking = tuple[int, int, dict[str, float]]


@dataclass(frozen=True)
class Round:
    """All that decides the pairs of one run of a later round.

    Args:
        number: of the round.
        policy: checkpoint of the run before, which answers, and from which the run starts.
        prompts: folder of the training prompts.
        answers: drawn for each prompt.
        evaluation: how answers are drawn, and the judge.
        recipe: limits and precision of the training.
        seed: of the run.
        device: "cpu" or "cuda".
    """

    number: int
    policy: Path
    prompts: Path
    answers: int
    evaluation: Evaluation
    recipe: Recipe
    seed: int
    device: str


def write_training_prompts(inputs: Inputs, shared: Path) -> Path:
    """Write the training prompts, each once, that a policy answers before a later round.

    Returns: their folder, next to that of the training pairs, named after their content.
    """
    folder = shared.with_name(digest("asked", shared.name, [prompt.id for prompt in inputs.training_prompts]))
    if not sealed(folder):
        golds = {pair.prompt.tobytes(): pair.gold.tolist() for pair in reversed(inputs.train) if pair.gold is not None}
        keys = {prompt.id: np.asarray(prompt.token_ids, np.int64).tobytes() for prompt in inputs.training_prompts}
        with building(folder) as part:
            write_prompts(part, inputs.training_prompts)
            GoldsRecord(answers={name: golds[key] for name, key in keys.items() if key in golds}).write(part)
            seal(part)
    return folder


def key(prompts: Path, studies: Studies, evaluation: Evaluation, planned: ScoringPlan) -> str:
    """Content key of all that decides the pairs of later rounds besides the policy that answers."""
    sampling = dict(evaluation.sampling.__dict__)
    return digest(prompts.name, sampling, STREAM, studies.answers, planned.needs.get("ranking"))


def check_rounds(studies: Studies, planned: ScoringPlan, losses: Iterable[Variant]) -> None:
    """Refuse later rounds that could not be trained.

    Raises:
        UserError: a loss reads a column that the judge's ranking does not give, or more than two answers are to be compared in pairs.
    """
    assert planned.judge is not None
    judge, _ = planned.judge
    if studies.answers > 2 and not judge.spec.pointwise:
        raise UserError(
            f"studies.answers = {studies.answers}: the judge {judge.name} compares two answers; leave it at 2"
        )
    given = _SCORES if judge.spec.pointwise else _CHANCE
    for loss in losses:
        if lacking := [name for name in loss.columns if name not in given]:
            raise UserError(
                f"{loss.name} reads the column {lacking[0]!r}, which answers ranked by {judge.name} do not have; "
                "leave it out, or leave out --rounds"
            )


def write_round(target: Path, this_round: Round, planned: ScoringPlan, say: Say = lambda line: None) -> None:
    """Write the training pairs of a run of a later round, with the log-probabilities of the policy that gave the answers.

    Raises:
        DpobenchError: the judge did not rank the answers, or ranked too few of them for a batch.
    """
    if sealed(target):
        verify(target)
        return
    recipe, device = this_round.recipe, this_round.device
    prompts = read_prompts(this_round.prompts)
    say("answering the training prompts")
    # The number of the round: the held-out answers of the same policy come from another stream.
    sampling = replace(this_round.evaluation.sampling, draws=this_round.answers, seed=this_round.number)
    policy = load_model(this_round.policy, device=device)
    drawn = sample(policy, load_tokenizer(this_round.policy), prompts, sampling, this_round.seed)
    del policy
    say("ranking the answers")
    by_prompt, counts = on_policy(prompts, drawn, planned, recipe.max_tokens)
    if counts.pairs < recipe.batch:
        raise DpobenchError(
            f"round {this_round.number}: the policy's answers to {counts.prompts:,} training prompts gave {counts.pairs:,} pairs, fewer "
            f"than recipe.batch = {recipe.batch}: {counts.equal:,} prompts with equal answers only, {counts.ties:,} ties, "
            f"{counts.no_verdict:,} without a verdict; raise studies.answers, choose a smaller batch, or another judge"
        )
    golds = {name: np.asarray(ids, np.int64) for name, ids in GoldsRecord.read(this_round.prompts).answers.items()}
    pairs = [replace(pair, gold=golds.get(prompt)) for prompt, pair in by_prompt.items()]
    say("log-probabilities of the ranked answers")
    with building(target) as part:
        write_pairs(part / PAIRS, with_reference(this_round.policy, pairs, device, recipe.precision))
        CountsRecord(counts=counts).write(part)
        write_provenance(part, device, recipe.precision, model_hash="")
        seal(part)


def on_policy(
    prompts: Sequence[Prompt], drawn: pd.DataFrame, planned: ScoringPlan, max_tokens: int
) -> tuple[dict[str, TokenPair], AnswerCounts]:
    """Pairs of a policy's answers, the better one chosen.

    Args:
        prompts: that were answered.
        drawn: the answers; columns `prompt, draw, text, token_ids`.
        planned: the judge.
        max_tokens: of prompt and answer together; longer answers are cut and lose their end token.

    Returns: a pair for each prompt whose answers differ and are ranked; and what became of the other prompts.
    """
    assert planned.judge is not None
    judge, settings = planned.judge
    rows = dict(iter(drawn.groupby("prompt", sort=False)))
    distinct = {p.id: rows[p.id].drop_duplicates("text") for p in prompts}
    open_ = [p for p in prompts if len(distinct[p.id]) > 1]
    texts = [distinct[p.id]["text"].tolist() for p in open_]
    rank = _by_score if judge.spec.pointwise else _by_comparison
    ranked = rank(judge, settings, open_, texts)
    dropped = {"equal": len(prompts) - len(open_), "ties": 0, "no_verdict": 0}
    pairs: dict[str, TokenPair] = {}
    for prompt, ranking in zip(open_, ranked, strict=True):
        if isinstance(ranking, str):
            dropped[ranking] += 1
            continue
        ids = distinct[prompt.id]["token_ids"].tolist()
        best, worst, columns = ranking
        room = max_tokens - len(prompt.token_ids)
        sides = [np.asarray(ids[place], np.int64)[:room] for place in (best, worst)]
        if np.array_equal(sides[0], sides[1]):
            dropped["equal"] += 1
            continue
        identity = digest(prompt.id, sides[0].tolist(), sides[1].tolist())
        pairs[prompt.id] = TokenPair(identity, np.asarray(prompt.token_ids, np.int64), sides[0], sides[1], columns)
    return pairs, AnswerCounts(prompts=len(prompts), pairs=len(pairs), **dropped)


def _by_score(
    judge: Plugin[JudgeSpec], settings: Mapping[str, Any], prompts: Sequence[Prompt], texts: Sequence[Sequence[str]]
) -> list[Ranking | str]:
    """Best and worst of each prompt's answers, by a judge that scores one at a time."""
    repeated = [prompt for prompt, answers in zip(prompts, texts, strict=True) for _ in answers]
    table = judge.function(repeated, [text for answers in texts for text in answers], **settings)
    if not isinstance(table, pd.DataFrame) or "score" not in table or len(table) != len(repeated):
        raise DpobenchError(f"the judge {judge.name} gave no table with a score for each of {len(repeated)} answers")
    scores = iter(table["score"].astype(float))
    rankings: list[Ranking | str] = []
    for answer_scores in [[next(scores) for _ in answers] for answers in texts]:
        finite = [(score, -place) for place, score in enumerate(answer_scores) if not math.isnan(score)]
        if len(finite) < 2:
            rankings.append("no_verdict")
        elif max(finite)[0] == min(finite)[0]:
            rankings.append("ties")
        else:
            (high, best), (low, worst) = max(finite), min(finite)
            rankings.append((-best, -worst, dict(zip(_SCORES, (high, low), strict=True))))
    return rankings


def _by_comparison(
    judge: Plugin[JudgeSpec], settings: Mapping[str, Any], prompts: Sequence[Prompt], texts: Sequence[Sequence[str]]
) -> list[Ranking | str]:
    """The better of each prompt's two answers, by a judge that compares; both orders count the same."""
    firsts, seconds = [answers[0] for answers in texts], [answers[1] for answers in texts]
    verdicts = compare(partial(judge.function, **settings), prompts, firsts, seconds)
    rankings: list[Ranking | str] = []
    for chance in summary(verdicts)["score"].tolist() if texts else ():
        best = 0 if chance > 0.5 else 1
        ranking: Ranking = (best, 1 - best, {_CHANCE[0]: max(chance, 1 - chance)})
        rankings.append("no_verdict" if math.isnan(chance) else "ties" if chance == 0.5 else ranking)
    return rankings
