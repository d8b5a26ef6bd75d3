"""Selected checkpoints against one another, judged side by side once all of them are there.

A judge that scores has told all that a tournament needs. One that compares must be shown the answers of both: those of each variant
and the control's, or of all pairs where round robin was asked for, and the reference's; on the test prompts, in both orders. What it
said of a run and the reference while the run was scored is among its replies and costs nothing. Baselines stay out: nothing is
claimed of them that would be worth the calls.

What an earlier judge said, or said of other checkpoints, is moved aside as soon as it is no longer what was asked for, and moved back
when it is again.
"""

import itertools
import logging
import shutil
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from dpobench.analysis import results as files
from dpobench.analysis.findings import TEST, Configuration, Findings, read
from dpobench.analysis.results import REFERENCE, Run, load
from dpobench.artifacts.files import building, digest, read_json, seal, sealed, write_bytes, write_json
from dpobench.data.prompts import Prompt
from dpobench.errors import DpobenchError
from dpobench.evaluation import pairwise
from dpobench.evaluation.plan import plan
from dpobench.evaluation.settings import Evaluation

FOLDER, VERDICTS, ASKED, NOTE = "tournament", "verdicts.parquet", "asked.parquet", "note.json"
ASIDE, FAILED = "tournament-earlier", "tournament-failed.json"
ROUND_ROBIN = "round_robin"


def play(
    out: Path, evaluation: Evaluation | None = None, say: Callable[[str], None] = lambda line: None
) -> Path | None:
    """Compare the selected cells of a finished experiment; what was compared already, by the same judge, is kept.

    Args:
        out: the experiment's folder.
        evaluation: judge and opponents; without it those in `experiment.json`.
        say: shows a line to the user.

    Returns: the folder `tournament` with `verdicts.parquet` (`prompt, draw, a, b`, the runs' ids, and `score`: the share that a
        wins, mean of both orders, NaN where a verdict is missing), `asked.parquet` with every verdict, and `note.json`; None where
        the judge scores, or there is nothing to compare, or the judge failed, which is said and ends nothing; an error that nobody
        foresaw lies in `tournament-failed.json`. Then no folder `tournament` is left; what was there is in `tournament-earlier`.
    """
    (out / FAILED).unlink(missing_ok=True)
    try:
        place = _place(out, evaluation, say)
    except DpobenchError as error:
        say(f"tournament not played: {error}")
        place = None
    except Exception as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())
        write_json(out / FAILED, {"said": said, "traceback": traceback.format_exc()})
        say(f"tournament not played: {said} (more in {FAILED})")
        logging.getLogger("dpobench").debug("tournament not played", exc_info=True)
        place = None
    if place is None:
        _set_aside(out)
    return place


def _set_aside(out: Path) -> None:
    if (out / FOLDER).exists():
        shutil.rmtree(out / ASIDE, ignore_errors=True)
        (out / FOLDER).rename(out / ASIDE)


def _place(out: Path, evaluation: Evaluation | None, say: Callable[[str], None]) -> Path | None:
    """Play where there is something to play."""
    settings = evaluation or Evaluation.model_validate(read_json(out / "experiment.json").get("evaluation") or {})
    if settings.judge is None:
        return None
    planned = plan(settings.model_copy(update={"evaluators": ()}), has_pairs=True, heldout="")
    assert planned.judge is not None
    plugin, arguments = planned.judge
    if plugin.spec.pointwise:
        return None
    found = read(load(out))
    games = list(_games(found, round_robin=ROUND_ROBIN in tuple(getattr(settings, "opponents", ()))))
    if not games:
        return None
    return _played(out, found, games, partial(plugin.function, **arguments), planned.needs["judge"], say)


def _games(f: Findings, *, round_robin: bool) -> Iterator[tuple[Run, Run]]:
    """Pairs of runs: every seed of one cell with every seed of the other, for none belongs to another by its number."""
    cells = [c for variant, c in f.chosen.items() if c.done and variant not in f.baselines]
    control = f.chosen.get(f.results.control or "")
    pairs: list[tuple[Configuration, Configuration]] = list(itertools.combinations(cells, 2))
    if not round_robin:
        pairs = [(c, control) for c in cells if control is not None and c.key != control.key]
    for one, other in pairs:
        yield from itertools.product(one.done, other.done)
    reference = Run(REFERENCE, {}, f.results.reference)
    yield from ((run, reference) for c in cells for run in c.done if len(cells) > 1)


def _played(
    out: Path,
    f: Findings,
    games: Sequence[tuple[Run, Run]],
    judge: pairwise.Pairwise,
    judged_by: str,
    say: Callable[[str], None],
) -> Path:
    asked = {key: entry for key, entry in files.prompts(f.results).items() if f.results.splits.get(key) == TEST}
    prompts = {key: Prompt(key, tuple(entry["messages"])) for key, entry in asked.items()}
    table = pd.concat([_beside(one, other) for one, other in games], ignore_index=True)
    table = table[table["prompt"].isin(list(prompts))].reset_index(drop=True)
    answers = table[["prompt", "draw", "a", "b", "text_a", "text_b"]].to_dict("split")["data"]
    key = digest("tournament", judged_by, [(p.id, p.messages) for p in prompts.values()], answers)
    folder = out / FOLDER
    if _holds(folder, key):
        return folder
    if _holds(out / ASIDE, key):
        # They change places: what lies in the folder may be asked for again, too.
        other = out / f".{ASIDE}.part"
        (out / ASIDE).rename(other)
        _set_aside(out)
        other.rename(folder)
        return folder
    _set_aside(out)
    say(f"tournament: {len(games)} pairs of checkpoints, {len(table):,} comparisons in both orders")
    known = [prompts[name] for name in table["prompt"]]
    rows = pairwise.compare(judge, known, table["text_a"].tolist(), table["text_b"].tolist())
    found = pairwise.summary(rows)
    names = table[["prompt", "draw", "a", "b"]]
    shown = names.iloc[rows["at"]].reset_index(drop=True)
    note = {
        "key": key,
        "judge": judged_by,
        "games": [[one.id, other.id] for one, other in games],
        "prompts": len(prompts),
        "comparisons": len(table),
        "missing": float(found["missing"].mean()) if len(found) else 0.0,
        "tokens": int(rows["tokens"].sum()),
        "cost": float(rows["cost"].sum()),
    }
    with building(folder) as part:
        _write(part / VERDICTS, names.assign(score=found["score"].to_numpy()))
        _write(part / ASKED, pd.concat([shown, rows.drop(columns="at")], axis=1)[list(pairwise.KEPT)])
        write_json(part / NOTE, note)
        seal(part)
    return folder


def _holds(folder: Path, key: str) -> bool:
    return sealed(folder) and read_json(folder / NOTE)["key"] == key


def _beside(one: Run, other: Run) -> pd.DataFrame:
    """Answers of two runs to the same prompts and draws."""
    columns = ["prompt", "draw", "text"]
    ours, theirs = (files.samples(run.folder)[columns] for run in (one, other))
    return ours.merge(theirs, on=["prompt", "draw"], suffixes=("_a", "_b")).assign(a=one.id, b=other.id)


def _write(path: Path, frame: Any) -> None:
    write_bytes(path, frame.to_parquet(index=False))
