"""Checkpoints trained elsewhere, scored like our own and put into the same report."""

import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from rich.console import Console

from dpobench.artifacts import provenance
from dpobench.artifacts.files import (
    MANIFEST,
    digest,
    file_hash,
    locked,
    read_json,
    seal,
    sealed,
    sweep_parts,
    verify,
    write_bytes,
    write_json,
)
from dpobench.artifacts.scores import WITHIN
from dpobench.errors import UnknownName, UserError
from dpobench.evaluation.plan import Plan, plan
from dpobench.evaluation.score import score
from dpobench.experiment.config import Experiment
from dpobench.experiment.validate import validate
from dpobench.losses.registry import variants
from dpobench.models import adapters
from dpobench.models.checkpoint import (
    Checkpoint,
    check_weights,
    load_tokenizer,
    locate,
    model_hash,
    resolve,
    weights_hash,
)
from dpobench.sweep.entries import RESERVED, Entry, entries, expanded
from dpobench.sweep.inputs import Inputs, gather_heldout
from dpobench.sweep.job import keep_replies
from dpobench.sweep.plan import Machine
from dpobench.sweep.prepare import heldout_folder
from dpobench.sweep.run import finish
from dpobench.sweep.workers import quiet

# What a run of ours says of itself, and what is said of a checkpoint that nobody here trained.
IDENTITY: dict[str, Any] = {
    "params": {},
    "strength": None,
    "beta": None,
    "unit": "",
    "learning_rate": None,
    "recipe": {},
}
TRAINING: dict[str, Any] = {"checks": {}, "seconds": {}, "tokens": 0, "steps": 0}
ELSEWHERE, OTHER_START, OTHER_BASE = "trained elsewhere", "trained from another start", "adapter of another base"


def evaluate(checkpoints: Sequence[str], experiment: Experiment, out: Path, where: Machine, console: Console) -> int:
    """Score checkpoints against their reference and write the report; again: only what is missing.

    Args:
        checkpoints: what `entries` reads: folders or hub names of models, of `peft` adapters, or of runs of ours.
        experiment: model (the reference), data (all held out) and evaluation; no variants. `control` is one of the names.
        out: folder of scores and report.
        where: device and threads.
        console: where progress is printed.

    Returns: exit status.

    Raises:
        UserError: a checkpoint cannot be read or has another vocabulary than the reference, two are one, no such control; nothing
            has been scored then.
    """
    validate(experiment, trains=False)
    keep_replies(where.cache, out)
    quiet(where.threads)

    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False)

    def planned(key: str) -> Plan:
        return plan(inputs.evaluation, has_pairs=bool(inputs.heldout), heldout=key)

    named = entries(checkpoints)
    with locked(out):
        _refuse_experiment(out)
        sweep_parts(out)
        inputs = gather_heldout(experiment, say)
        notes = [_note(entry, experiment, inputs, where) for entry in named]
        _refuse_twins(notes)
        _refuse_mixed(named, notes)
        control = _control(experiment, notes)
        for note in notes:
            if not _scored(out / "runs" / note["id"]):
                check_weights(Path(note["checkpoint"]))
            for flag in note["flags"]:
                if flag in (OTHER_START, OTHER_BASE):
                    say(f"warning: {note['variant']} ({note['checkpoint']}): {flag} than the reference")
        heldout = heldout_folder(inputs, planned, out, where.device, say)
        for note in notes:
            _score(note, inputs, heldout, planned(heldout.name), out, where, say)
        _write_plan(experiment, control, notes, planned(heldout.name), inputs, heldout, out)
        return finish(out, {note["id"]: "done" for note in notes}, console)


def _refuse_mixed(named: Sequence[Entry], notes: Sequence[dict[str, Any]]) -> None:
    """Several folders of one given name are seeds of one method: runs of ours that tell otherwise are none.

    Raises:
        UserError: two of them had another loss or other settings.
    """
    first: dict[str, tuple[str, Any]] = {}
    for entry, note in zip(named, notes, strict=True):
        told = (note["trained_with"], note["params"], note["learning_rate"])
        if not entry.method or told[0] is None:
            continue
        place, before = first.setdefault(entry.method, (entry.place, told))
        if before != told:
            raise UserError(
                f"{entry.method}: {place} ({_settings(before)}) and {entry.place} ({_settings(told)}) are no seeds of one method; give "
                "them names of their own, or leave the names out"
            )


def _settings(told: Any) -> str:
    variant, params, rate = told
    return ", ".join([str(variant), *(f"{name}={value}" for name, value in params.items()), f"learning rate {rate}"])


def _refuse_experiment(out: Path) -> None:
    """The plan of trained runs must not be lost to a list of checkpoints."""
    file = out / "plan.json"
    if file.is_file() and read_json(file).get("training"):
        raise UserError(f"{out} holds an experiment that was trained there; choose another --out")


def _note(entry: Entry, experiment: Experiment, inputs: Inputs, where: Machine) -> dict[str, Any]:
    """What `run.json` says of a checkpoint."""
    folder, own = _place(entry.place)
    base = _base(folder, experiment, inputs) if adapters.is_adapter(folder) else None
    _check_vocabulary(folder, base or folder, inputs.model)
    # What a hub name leads to is called by its commit.
    last = folder.name if expanded(entry.place).is_dir() else Path(entry.place).name
    name = entry.method or (own or {}).get("variant") or re.sub(r"[^A-Za-z0-9._=+-]", "-", last).lstrip(".-")
    if not name or name == RESERVED:
        raise UserError(f"checkpoint {entry.place!r}: {name!r} can name no row of a table; write NAME={entry.place}")
    content = model_hash(folder) if base is None else digest(_adapter_hash(folder), _weights(base))
    flags = [ELSEWHERE] if own is None else [flag for flag in own.get("flags") or () if flag != ELSEWHERE]
    if own is not None and own["provenance"].get("model_hash") not in (None, inputs.model_hash):
        flags.append(OTHER_START)
    if base is not None and _weights(base) != _weights(inputs.model):
        flags.append(OTHER_BASE)
    told = {key: (own or {}).get(key, default) for key, default in (IDENTITY | TRAINING).items()}
    told["params"] = dict(told["params"]) | dict((own or {}).get("condition") or {})
    return {
        "id": f"{name.replace(':', '_')}-{content}",
        "variant": name,
        "seed": entry.number if own is None else own["seed"],
        **told,
        "trained": _trained(own),
        "trained_with": (own or {}).get("variant"),
        "checkpoint": str(folder),
        "base": None if base is None else str(base),
        "log": None if own is None else str(folder.parent / "log.jsonl"),
        "status": "done",
        "reason": None,
        "flags": flags,
        "states_probability": bool((own or {}).get("states_probability")) and not entry.method,
        "baseline": bool((own or {}).get("baselines")) and not entry.method,
        "given": (own or {}).get("given") or [],
        "provenance": {
            **provenance.environment(where.device, "float32"),
            "model_hash": content,
            "data_hash": "unknown" if own is None else own["provenance"].get("data_hash"),
        },
    }


def _place(name: str) -> tuple[Path, dict[str, Any] | None]:
    """Folder of a checkpoint, and what its run says of it where it is one of ours."""
    folder = locate(name)
    if (folder / "run.json").is_file() and not (folder / "config.json").is_file():
        folder = _checkpoint_of(folder)
    folder = folder.resolve() if adapters.is_adapter(folder) else resolve(str(folder))
    # A checkpoint within a training of ours lies two folders further down, and is named after its step.
    step = folder.parent.name if folder.parent.parent.name == WITHIN else ""
    run = folder.parents[2 if step else 0]
    file = run / "run.json"
    own = read_json(file) if folder.name == "checkpoint" and file.is_file() else {}
    if not {"variant", "seed", "provenance", *IDENTITY} <= set(own):
        return folder, None
    file, variant = run.parents[1] / "plan.json", own["variant"]
    plan_of = read_json(file) if file.is_file() else {}
    told = {name: variant in (plan_of.get(name) or ()) for name in ("states_probability", "baselines")}
    own |= {"steps": int(step), "condition": {**(own.get("condition") or {}), "step": int(step)}} if step else {}
    return folder, own | told | {"given": (plan_of.get("given") or {}).get(variant) or []}


def _checkpoint_of(run: Path) -> Path:
    """Where a run of ours left its policy."""
    if not (run / "checkpoint").is_dir():
        told = read_json(run / "run.json")
        raise UserError(
            f"{run}: this run left no checkpoint ({told.get('status')}: {told.get('reason')}); leave it out"
        )
    return run / "checkpoint"


def _trained(own: dict[str, Any] | None) -> dict[str, Any]:
    """What evaluators may know of a run's loss: nothing where it is not at hand as it was."""
    try:
        known = own is not None and variants.get(own["variant"]).code_hash == own.get("code")
    except UserError:
        return {}
    kept = ("variant", "params", "strength", "unit", "seed")
    return {key: own[key] for key in kept} if own is not None and known else {}


def _base(folder: Path, experiment: Experiment, inputs: Inputs) -> Path:
    """The model that an adapter was trained on: the reference where it is that, else what its own name leads to."""
    adapter = adapters.read(folder)
    adapters.check(adapter)
    if adapter.base == experiment.model and adapter.revision is None:
        return inputs.model
    try:
        base = resolve(adapter.base, adapter.revision)
    except UserError as error:
        raise UserError(
            f"adapter {folder}: its base is not to be had: {error}. Where the reference is its base, write {experiment.model} under "
            f"base_model_name_or_path in its {adapters.CONFIG}"
        ) from error
    return inputs.model if _weights(base) == _weights(inputs.model) else base


@lru_cache(maxsize=8)
def _weights(folder: Path) -> str:
    """Read once a command: adapters of one method share their base."""
    return weights_hash(folder)


def _adapter_hash(folder: Path) -> str:
    return digest([file_hash(folder / name) for name in (adapters.CONFIG, adapters.WEIGHTS)])


def _check_vocabulary(folder: Path, base: Path, reference: Path) -> None:
    """Refuse other words, or another number of logits, than the reference's."""
    from transformers import AutoConfig

    # A folder of an adapter may hold no tokenizer.
    place = folder if any(folder.glob("tokenizer*")) or base == folder else base
    own, wanted = (load_tokenizer(one).get_vocab() for one in (place, reference))
    if own != wanted:
        word = min(word for word in {*own, *wanted} if own.get(word) != wanted.get(word))
        raise UserError(
            f"{folder}: its tokenizer differs from the reference's ({len(own):,} and {len(wanted):,} words; {word!r} is number "
            f"{own.get(word)} and {wanted.get(word)}); only models of one vocabulary can be compared"
        )
    sizes = [
        AutoConfig.from_pretrained(one, local_files_only=True).get_text_config().vocab_size for one in (base, reference)
    ]
    if sizes[0] != sizes[1]:
        raise UserError(
            f"{folder}: its embedding has {sizes[0]:,} rows, the reference's {sizes[1]:,}; only models of one vocabulary can be "
            "compared: cut or pad one of them with resize_token_embeddings"
        )


def _refuse_twins(notes: Sequence[dict[str, Any]]) -> None:
    """Two rows of one method and seed, or one model entered twice, would be counted as independent."""
    cells: dict[str, str] = {}
    contents: dict[str, str] = {}
    for note in notes:
        place, content = note["checkpoint"], note["provenance"]["model_hash"]
        if content in contents:
            raise UserError(f"{contents[content]} and {place} hold the same weights; leave one out")
        contents[content] = place
        cell = digest(*(note[key] for key in ("variant", "params", "beta", "learning_rate", "seed")))
        if cell in cells:
            raise UserError(
                f"{cells[cell]} and {place} are both {note['variant']}, seed {note['seed']}; tell them apart by NAME=FOLDER, or enter "
                f"them as seeds of one method: {note['variant']}=FOLDER,FOLDER"
            )
        cells[cell] = place


def _control(experiment: Experiment, notes: Sequence[dict[str, Any]]) -> str:
    names = list(dict.fromkeys(str(note["variant"]) for note in notes))
    if experiment.control is not None and experiment.control not in names:
        raise UnknownName("checkpoint", experiment.control, names)
    candidates = [note["variant"] for note in notes if not note["baseline"]]
    return experiment.control or next(iter(candidates), names[0])


def _scored(folder: Path) -> bool:
    """Whether a folder was sealed; what is in it is compared with its manifest."""
    if not sealed(folder):
        return False
    verify(folder)
    return True


def _score(
    note: dict[str, Any], inputs: Inputs, heldout: Path, planned: Plan, out: Path, where: Machine, say: Any
) -> None:
    """Score one checkpoint; what lies there under the same settings is kept."""
    folder = out / "runs" / note["id"]
    folder.mkdir(parents=True, exist_ok=True)
    begun: list[str] = []

    def progress(part: str) -> None:
        if not begun:
            say(f"scoring {note['variant']}, seed {note['seed']} ({note['checkpoint']})")
        begun.append(part)
        say(f"  {part}")

    (folder / MANIFEST).unlink(missing_ok=True)
    checkpoint = Checkpoint(
        Path(note["checkpoint"]),
        inputs.model,
        where.device,
        run=note["trained"],
        reference_hash=inputs.model_hash,
        base=Path(note["base"]) if note["base"] else None,
    )
    score(checkpoint, folder, heldout, inputs.evaluation, planned, seed=note["seed"], progress=progress)
    if note["log"] and Path(note["log"]).is_file():
        write_bytes(folder / "log.jsonl", Path(note["log"]).read_bytes())
    write_json(folder / "run.json", note | {"scored_as": planned.key})
    seal(folder)
    if not begun:
        say(f"{note['variant']}, seed {note['seed']}: scored before")


def _write_plan(
    experiment: Experiment,
    control: str,
    notes: Sequence[dict[str, Any]],
    planned: Plan,
    inputs: Inputs,
    heldout: Path,
    out: Path,
) -> None:
    names = list(dict.fromkeys(note["variant"] for note in notes))
    told = experiment.model_dump(mode="json")
    told |= {"name": out.name, "control": control, "alpha": experiment.evaluation.alpha}
    told |= {"variants": names, "seeds": sorted({note["seed"] for note in notes})}
    write_json(out / "experiment.json", told)
    runs = [{key: note[key] for key in ("id", "variant", "seed", *IDENTITY)} for note in notes]
    content = {
        "runs": runs,
        "left_out": list(planned.left_out),
        "states_probability": sorted({note["variant"] for note in notes if note["states_probability"]}),
        "baselines": sorted({note["variant"] for note in notes if note["baseline"]} - {control}),
        "given": {note["variant"]: note["given"] for note in notes},
        "data": dict(inputs.counts),
        "model_hash": inputs.model_hash,
        "reference": heldout.name,
        "training": "",
    }
    write_json(out / "plan.json", content)
