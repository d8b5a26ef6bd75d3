"""Later rounds: a policy answers the training prompts, the judge ranks its answers, the next policy learns from the ranking."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dpobench.artifacts.files import building, digest, read_json, seal, sealed, verify, write_json
from dpobench.artifacts.provenance import environment
from dpobench.data.prompts import Prompt, read_prompts, write_prompts
from dpobench.data.tokens import TokenPair, write_pairs
from dpobench.errors import DpobenchError, UserError
from dpobench.evaluation.pairwise import compare, summary
from dpobench.evaluation.plan import Plan
from dpobench.evaluation.settings import Evaluation
from dpobench.evaluation.spec import JudgeSpec
from dpobench.experiment.studies import Studies
from dpobench.losses.variant import Variant
from dpobench.models.checkpoint import load_model, load_tokenizer
from dpobench.models.generate import STREAM, sample
from dpobench.plugins.plugin import Plugin
from dpobench.sweep.inputs import Inputs, Say
from dpobench.sweep.prepare import with_reference
from dpobench.training.reference import PAIRS
from dpobench.training.run import Recipe

GOLDS, COUNTS = "golds.json", "counts.json"
_SCORES, _CHANCE = ("score_chosen", "score_rejected"), ("win_probability",)
Ranking = tuple[int, int, dict[str, float]]


@dataclass(frozen=True)
class Round:
    """All that decides the pairs of one run of a later round.

    Args:
        number: of the round.
        policy: checkpoint of the run before, which answers, and from which the run starts.
        asked: folder of the training prompts.
        answers: drawn for each prompt.
        evaluation: how answers are drawn, and the judge.
        recipe: limits and precision of the training.
        seed: of the run.
        device: "cpu" or "cuda".
    """

    number: int
    policy: Path
    asked: Path
    answers: int
    evaluation: Evaluation
    recipe: Recipe
    seed: int
    device: str


def write_asked(inputs: Inputs, shared: Path) -> Path:
    """Write the training prompts, each once, that a policy answers before a later round.

    Returns: their folder, beside that of the training pairs, named after their content.
    """
    folder = shared.with_name(digest("asked", shared.name, [prompt.id for prompt in inputs.training_prompts]))
    if not sealed(folder):
        golds = {pair.prompt.tobytes(): pair.gold.tolist() for pair in reversed(inputs.train) if pair.gold is not None}
        keys = {prompt.id: np.asarray(prompt.token_ids, np.int64).tobytes() for prompt in inputs.training_prompts}
        with building(folder) as part:
            write_prompts(part, inputs.training_prompts)
            write_json(part / GOLDS, {name: golds[key] for name, key in keys.items() if key in golds})
            seal(part)
    return folder


def key(asked: Path, studies: Studies, evaluation: Evaluation, planned: Plan) -> str:
    """Content key of all that decides the pairs of later rounds beside the policy that answers."""
    sampling = dict(evaluation.sampling.__dict__)
    return digest(asked.name, sampling, STREAM, studies.answers, planned.needs.get("ranking"))


def check_rounds(studies: Studies, planned: Plan, losses: Iterable[Variant]) -> None:
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


def write_round(target: Path, asked: Round, planned: Plan, say: Say = lambda line: None) -> None:
    """Write the training pairs of a run of a later round, with the log-probabilities of the policy that gave the answers.

    Raises:
        DpobenchError: the judge did not rank the answers, or ranked too few of them for a batch.
    """
    if sealed(target):
        verify(target)
        return
    prompts = read_prompts(asked.asked)
    say("answering the training prompts")
    # The number of the round: the held-out answers of the same policy come from another stream.
    how = replace(asked.evaluation.sampling, draws=asked.answers, seed=asked.number)
    policy = load_model(asked.policy, device=asked.device)
    drawn = sample(policy, load_tokenizer(asked.policy), prompts, how, asked.seed)
    del policy
    say("ranking the answers")
    made, counts = on_policy(prompts, drawn, planned, asked.recipe.max_tokens)
    _require(counts, asked)
    golds = read_json(asked.asked / GOLDS)
    pairs = [replace(pair, gold=_gold(golds, prompt)) for prompt, pair in made.items()]
    say("log-probabilities of the ranked answers")
    with building(target) as part:
        write_pairs(part / PAIRS, with_reference(asked.policy, pairs, asked.device, asked.recipe.precision))
        write_json(part / COUNTS, counts)
        write_json(part / "provenance.json", environment(asked.device, asked.recipe.precision))
        seal(part)


def _require(counts: Mapping[str, int], asked: Round) -> None:
    if counts["pairs"] < asked.recipe.batch:
        raise DpobenchError(
            f"round {asked.number}: the policy's answers to {counts['prompts']:,} training prompts gave {counts['pairs']:,} pairs, fewer "
            f"than recipe.batch = {asked.recipe.batch}: {counts['equal']:,} prompts with equal answers only, {counts['ties']:,} ties, "
            f"{counts['no_verdict']:,} without a verdict; raise studies.answers, choose a smaller batch, or another judge"
        )


def _gold(golds: Mapping[str, Any], prompt: str) -> Any:
    return np.asarray(golds[prompt], np.int64) if prompt in golds else None


def on_policy(
    prompts: Sequence[Prompt], drawn: pd.DataFrame, planned: Plan, max_tokens: int
) -> tuple[dict[str, TokenPair], dict[str, int]]:
    """Pairs of a policy's own answers, the better one chosen.

    Args:
        prompts: what was asked.
        drawn: the answers; columns `prompt, draw, text, token_ids`.
        planned: the judge.
        max_tokens: of prompt and answer together; longer answers are cut and lose their end token.

    Returns: a pair for each prompt whose answers differ and are ranked; and how many prompts there were, how many had equal answers
        only, how many ties and how many without a verdict.
    """
    assert planned.judge is not None
    judge, settings = planned.judge
    rows = dict(iter(drawn.groupby("prompt", sort=False)))
    distinct = {p.id: rows[p.id].drop_duplicates("text") for p in prompts}
    open_ = [p for p in prompts if len(distinct[p.id]) > 1]
    texts = [distinct[p.id]["text"].tolist() for p in open_]
    rank = _by_score if judge.spec.pointwise else _by_comparison
    ranked = rank(judge, settings, open_, texts)
    counts = {"prompts": len(prompts), "equal": len(prompts) - len(open_), "ties": 0, "no_verdict": 0, "pairs": 0}
    found: dict[str, TokenPair] = {}
    for prompt, ranking in zip(open_, ranked, strict=True):
        if isinstance(ranking, str):
            counts[ranking] += 1
            continue
        ids = distinct[prompt.id]["token_ids"].tolist()
        best, worst, columns = ranking
        room = max_tokens - len(prompt.token_ids)
        sides = [np.asarray(ids[place], np.int64)[:room] for place in (best, worst)]
        if np.array_equal(sides[0], sides[1]):
            counts["equal"] += 1
            continue
        identity = digest(prompt.id, sides[0].tolist(), sides[1].tolist())
        found[prompt.id] = TokenPair(identity, np.asarray(prompt.token_ids, np.int64), sides[0], sides[1], columns)
    return found, counts | {"pairs": len(found)}


def _by_score(
    judge: Plugin[JudgeSpec], settings: Mapping[str, Any], prompts: Sequence[Prompt], texts: Sequence[Sequence[str]]
) -> list[Ranking | str]:
    """Best and worst of each prompt's answers, by a judge that scores one at a time."""
    asked = [prompt for prompt, own in zip(prompts, texts, strict=True) for _ in own]
    told = judge.function(asked, [text for own in texts for text in own], **settings)
    if not isinstance(told, pd.DataFrame) or "score" not in told or len(told) != len(asked):
        raise DpobenchError(f"the judge {judge.name} gave no table with a score for each of {len(asked)} answers")
    scores = iter(told["score"].astype(float))
    found: list[Ranking | str] = []
    for own in [[next(scores) for _ in one] for one in texts]:
        known = [(score, -place) for place, score in enumerate(own) if not math.isnan(score)]
        if len(known) < 2:
            found.append("no_verdict")
        elif max(known)[0] == min(known)[0]:
            found.append("ties")
        else:
            (high, best), (low, worst) = max(known), min(known)
            found.append((-best, -worst, dict(zip(_SCORES, (high, low), strict=True))))
    return found


def _by_comparison(
    judge: Plugin[JudgeSpec], settings: Mapping[str, Any], prompts: Sequence[Prompt], texts: Sequence[Sequence[str]]
) -> list[Ranking | str]:
    """The better of each prompt's two answers, by a judge that compares; both orders count the same."""
    rows = compare(partial(judge.function, **settings), prompts, [own[0] for own in texts], [own[1] for own in texts])
    found: list[Ranking | str] = []
    for chance in summary(rows)["score"].tolist() if texts else ():
        best = 0 if chance > 0.5 else 1
        ranking: Ranking = (best, 1 - best, {_CHANCE[0]: max(chance, 1 - chance)})
        found.append("no_verdict" if math.isnan(chance) else "ties" if chance == 0.5 else ranking)
    return found
