"""The tournament: selected checkpoints against one another, judged side by side once all of them are trained.

For a judge that scores one answer at a time its scores are enough. A judge that compares must be shown the answers of both: those of
each variant and the control's, or of all pairs where the settings name round robin, and the reference's; on the test prompts, in both
orders. Its verdicts on a run and the reference, from when the run was scored, are among its replies and cost nothing. Baselines are
left out: nothing is claimed of them that would be worth the calls.

Verdicts of an earlier judge, or on other checkpoints, are moved aside as soon as the settings want others, and moved back when they
want these again.
"""

import itertools
import logging
import shutil
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd

from dpobench.analysis import results as files
from dpobench.analysis.findings import TEST, Configuration, Findings, read
from dpobench.analysis.results import REFERENCE, load
from dpobench.artifacts.files import building, digest, seal, sealed, write_bytes
from dpobench.artifacts.records import ExperimentRecord, TournamentFailure, TournamentRecord
from dpobench.data.prompts import Prompt
from dpobench.errors import DpobenchError
from dpobench.evaluation import pairwise
from dpobench.evaluation.plan import scoring_plan
from dpobench.evaluation.settings import Evaluation
from dpobench.sweep.inputs import Say

FOLDER, VERDICTS, ASKED = "tournament", "verdicts.parquet", "asked.parquet"
ASIDE = "tournament-earlier"
ROUND_ROBIN = "round_robin"


@dataclass(frozen=True)
class Player:
    """A checkpoint that takes part.

    Args:
        id: of its run; "reference" for the reference.
        folder: where its samples lie.
    """

    id: str
    folder: Path | None


def play(out: Path, evaluation: Evaluation | None = None, say: Say = lambda line: None) -> Path | None:
    """Compare the selected cells of a finished experiment; verdicts of the same judge stay.

    Args:
        out: the experiment's folder.
        evaluation: judge and opponents; without it those in `experiment.json`.
        say: shows a line to the user.

    Returns: the folder `tournament` with `verdicts.parquet` (`prompt, draw, a, b`, the runs' ids, and `score`: the share that a
        wins, mean of both orders, NaN where a verdict is missing), `asked.parquet` with every verdict, and `note.json`; None where
        the judge scores, or there is nothing to compare, or the judge failed: then a line says so and the experiment goes on; an
        error that nobody foresaw lies in `tournament-failed.json`. What lay in `tournament` is then in `tournament-earlier`.
    """
    (out / TournamentFailure.FILE).unlink(missing_ok=True)
    try:
        folder = _play(out, evaluation, say)
    except DpobenchError as error:
        say(f"tournament not played: {error}")
        folder = None
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        TournamentFailure(reason=reason, traceback=traceback.format_exc()).write(out)
        say(f"tournament not played: {reason} (more in {TournamentFailure.FILE})")
        logging.getLogger("dpobench").debug("tournament not played", exc_info=True)
        folder = None
    if folder is None:
        _set_aside(out)
    return folder


def _set_aside(out: Path) -> None:
    if (out / FOLDER).exists():
        shutil.rmtree(out / ASIDE, ignore_errors=True)
        (out / FOLDER).rename(out / ASIDE)


def _play(out: Path, evaluation: Evaluation | None, say: Say) -> Path | None:
    """Play where there is something to play."""
    if evaluation is None:
        recorded = ExperimentRecord.read(out).evaluation
        evaluation = Evaluation.model_validate(recorded.model_dump(exclude_unset=True))
    if evaluation.judge is None:
        return None
    planned = scoring_plan(evaluation.model_copy(update={"evaluators": ()}), has_pairs=True, heldout="")
    assert planned.judge is not None
    plugin, arguments = planned.judge
    if plugin.spec.pointwise:
        return None
    findings = read(load(out))
    games = list(_games(findings, round_robin=ROUND_ROBIN in evaluation.opponents))
    if not games:
        return None
    return _played(out, findings, games, partial(plugin.function, **arguments), planned.needs["judge"], say)


def _games(f: Findings, *, round_robin: bool) -> Iterator[tuple[Player, Player]]:
    """Pairs of runs: every seed of one cell with every seed of the other, for none belongs to another by its number."""
    cells = [c for variant, c in f.chosen.items() if c.done and variant not in f.baselines]
    control = f.chosen.get(f.results.control or "")
    pairs: list[tuple[Configuration, Configuration]] = list(itertools.combinations(cells, 2))
    if not round_robin:
        pairs = [(c, control) for c in cells if control is not None and c.key != control.key]
    for one, other in pairs:
        yield from itertools.product(_players(one), _players(other))
    reference = Player(REFERENCE, f.results.reference)
    yield from ((player, reference) for c in cells for player in _players(c) if len(cells) > 1)


def _players(cell: Configuration) -> list[Player]:
    return [Player(run.id, run.folder) for run in cell.done]


def _played(
    out: Path,
    f: Findings,
    games: Sequence[tuple[Player, Player]],
    judge: pairwise.PairwiseJudge,
    judged_by: str,
    say: Say,
) -> Path:
    every = files.prompts(f.results).values()
    prompts = {one.id: Prompt(one.id, one.messages) for one in every if f.results.splits.get(one.id) == TEST}
    table = pd.concat([_both_answers(one, other) for one, other in games], ignore_index=True)
    table = table[table["prompt"].isin(list(prompts))].reset_index(drop=True)
    answers = table[["prompt", "draw", "a", "b", "text_a", "text_b"]].to_dict("split")["data"]
    key = digest("tournament", judged_by, [(p.id, p.messages) for p in prompts.values()], answers)
    folder = out / FOLDER
    if _holds(folder, key):
        return folder
    if _holds(out / ASIDE, key):
        # They change places: the settings may want what lies in the folder again, too.
        other = out / f".{ASIDE}.part"
        (out / ASIDE).rename(other)
        _set_aside(out)
        other.rename(folder)
        return folder
    _set_aside(out)
    say(f"tournament: {len(games)} pairs of checkpoints, {len(table):,} comparisons in both orders")
    row_prompts = [prompts[name] for name in table["prompt"]]
    verdicts = pairwise.compare(judge, row_prompts, table["text_a"].tolist(), table["text_b"].tolist())
    summary = pairwise.summary(verdicts)
    names = table[["prompt", "draw", "a", "b"]]
    verdict_names = names.iloc[verdicts["at"]].reset_index(drop=True)
    record = TournamentRecord(
        key=key,
        judge=judged_by,
        games=tuple((one.id, other.id) for one, other in games),
        prompts=len(prompts),
        comparisons=len(table),
        missing=float(summary["missing"].mean()) if len(summary) else 0.0,
        tokens=int(verdicts["tokens"].sum()),
        cost=float(verdicts["cost"].sum()),
    )
    with building(folder) as part:
        _write(part / VERDICTS, names.assign(score=summary["score"].to_numpy()))
        _write(
            part / ASKED,
            pd.concat([verdict_names, verdicts.drop(columns="at")], axis=1)[list(pairwise.VERDICT_COLUMNS)],
        )
        record.write(part)
        seal(part)
    return folder


def _holds(folder: Path, key: str) -> bool:
    return sealed(folder) and TournamentRecord.read(folder).key == key


def _both_answers(one: Player, other: Player) -> pd.DataFrame:
    """Answers of two players to the same prompts and draws."""
    columns = ["prompt", "draw", "text"]
    first, second = (files.samples(player.folder)[columns] for player in (one, other))
    return first.merge(second, on=["prompt", "draw"], suffixes=("_a", "_b")).assign(a=one.id, b=other.id)


def _write(path: Path, frame: pd.DataFrame) -> None:
    write_bytes(path, frame.to_parquet(index=False))
