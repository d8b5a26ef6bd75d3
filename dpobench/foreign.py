"""Checkpoints trained elsewhere, scored like our own and put into the same report."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from dpobench import provenance, store
from dpobench.checkpoint import Checkpoint, load_tokenizer, model_hash, resolve
from dpobench.errors import UserError
from dpobench.evaluate import Plan, plan, score
from dpobench.execute import register
from dpobench.experiment import Experiment
from dpobench.prepare import gather_heldout, heldout_folder
from dpobench.runner import Machine, finish
from dpobench.workers import quiet


def evaluate(checkpoints: Sequence[str], experiment: Experiment, out: Path, where: Machine, console: Console) -> int:
    """Score checkpoints against their reference and write the report.

    Args:
        checkpoints: folders or hub names; each is named after its folder.
        experiment: model (the reference), data (all held out) and evaluation; no variants.
        out: folder of scores and report.
        where: device and threads.
        console: where progress is printed.

    Returns: exit status.

    Raises:
        UserError: a checkpoint cannot be read or has another tokenizer than the reference.
    """
    register(experiment.plugins)
    quiet(where.threads)

    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False)

    def planned(key: str) -> Plan:
        return plan(inputs.evaluation, has_pairs=bool(inputs.heldout), heldout=key)

    with store.locked(out):
        store.sweep_parts(out)
        inputs = gather_heldout(experiment, say)
        notes = [_note(resolve(name), inputs.model, where) for name in checkpoints]
        _refuse_twins(notes)
        heldout = heldout_folder(inputs, planned, out, where.device, say)
        for note in notes:
            folder = out / "runs" / note["id"]
            folder.mkdir(parents=True, exist_ok=True)
            say(f"scoring {note['variant']}")
            (folder / store.MANIFEST).unlink(missing_ok=True)
            checkpoint = Checkpoint(
                Path(note["checkpoint"]), inputs.model, where.device, run=note, reference_hash=inputs.model_hash
            )
            score(
                checkpoint,
                folder,
                heldout,
                inputs.evaluation,
                planned(heldout.name),
                progress=lambda part: say(f"  {part}"),
            )
            store.write_json(folder / "run.json", note)
            store.seal(folder)
        _write_plan(experiment, notes, planned(heldout.name), dict(inputs.note), heldout, out)
        return finish(out, {note["id"]: "done" for note in notes}, console)


def _note(folder: Path, reference: Path, where: Machine) -> dict[str, Any]:
    """What `run.json` says of a checkpoint nobody here trained."""
    if load_tokenizer(folder).get_vocab() != load_tokenizer(reference).get_vocab():
        raise UserError(
            f"{folder}: its tokenizer differs from the reference's; only models of one vocabulary can be compared"
        )
    name = re.sub(r"[^A-Za-z0-9._=+-]", "-", folder.name).lstrip(".-") or "checkpoint"
    content = model_hash(folder)
    return {
        "id": f"{name}-{content}",
        "variant": name,
        "params": {},
        "strength": None,
        "beta": None,
        "unit": "",
        "seed": 0,
        "learning_rate": None,
        "recipe": {},
        "checkpoint": str(folder),
        "status": "done",
        "reason": None,
        "checks": {},
        "seconds": {},
        "tokens": 0,
        "steps": 0,
        "flags": ["trained elsewhere"],
        "provenance": {**provenance.environment(where.device, "float32"), "model_hash": content, "data_hash": None},
    }


def _refuse_twins(notes: Sequence[dict[str, Any]]) -> None:
    names = [note["variant"] for note in notes]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"two checkpoints are called {twice[0]!r}; rename a folder, the report needs distinct names")


def _write_plan(
    experiment: Experiment,
    notes: Sequence[dict[str, Any]],
    planned: Plan,
    data: dict[str, Any],
    heldout: Path,
    out: Path,
) -> None:
    told = experiment.model_dump(mode="json")
    told |= {"name": out.name, "control": notes[0]["variant"], "seeds": [0], "alpha": experiment.evaluation.alpha}
    store.write_json(out / "experiment.json", told | {"variants": [note["variant"] for note in notes]})
    keys = ("id", "variant", "params", "strength", "beta", "unit", "seed", "learning_rate", "recipe")
    runs = [{key: note[key] for key in keys} for note in notes]
    content = {
        "runs": runs,
        "left_out": list(planned.left_out),
        "data": data,
        "reference": heldout.name,
        "training": "",
    }
    store.write_json(out / "plan.json", content)
