"""A witness for refactorings: the same experiments must give the same weights, samples, scores, tables and figures.

    python tests/witness.py record FOLDER               run the experiments of this checkout and write down what came out
    python tests/witness.py compare FOLDER OTHER        say what differs; exit status 1 if anything does
    python tests/witness.py since REVISION              both, against a revision of this repository, on this machine

A record is a folder of text files, so that `diff -r` shows what changed. Run ids, folder names, code hashes, versions, clocks and
memory are taken out of it: they may change when files move, numbers may not. Numbers depend on the processor and on the versions of
the libraries, so records of different machines cannot be compared; `since` makes both on this one.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"
FEW = (
    "data.limit=48", "recipe.batch=16", "recipe.learning_rate=5e-4", "recipe.max_tokens=640", "recipe.max_prompt_tokens=320",
    "data.most_lost=0.7", "evaluation.prompts=12", "evaluation.heldout_pairs=48", "evaluation.max_new_tokens=12",
    "data.heldout_share=0.15",
)  # fmt: skip
# What a clock or the memory of the machine decides, by the names of columns.
MEASURED = re.compile(r"seconds|per_s$|per_second|per_hour|megabytes|hours")
SVG_REFERENCE = re.compile(r"\b[a-z][0-9a-f]{10}\b")


def experiments(folder: Path) -> dict[str, list[str]]:
    """Command lines by name, in the order in which they are run; later ones read what earlier ones left."""
    main, real = folder / "main", folder / "real"
    tiny = ["run", "--preset", "tiny", "--seeds", "0,1"]
    commands = {
        "main": [*tiny, "--variants", "dpo,ipo,cdpo", "--beta-grid", "0.1,0.5", "--checkpoints", "2"],
        "sums-and-batches": [
            *tiny, "--variants", "dpo,dpo:0.8+sft,aot,beta_dpo", "--beta-grid", "0.3", "--no-baselines",
            "--set", "evaluation.draws=2", "--set", "evaluation.temperature=0.8",
            "--set", "evaluation.opponents=['reference','chosen','round_robin']", "--set", "recipe.reference_every=3",
        ],
        "studies": [
            *tiny, "--variants", "dpo,ipo", "--beta-grid", "0.5", "--label-noise", "0.3", "--train-size", "100",
            "--reference-quality", "0.3", "--rounds", "2", "--objectives",
        ],
        "real": [
            "run", "--variants", "dpo,simpo", "--model", str(folder / "model"), "--out", str(real),
            "--data", str(DATA / "preferences" / "hh_harmless_test.jsonl.gz"), *(w for s in FEW for w in ("--set", s)),
        ],
    }  # fmt: skip
    if not DATA.is_dir():
        del commands["real"]
    return {
        name: command if "--out" in command else [*command, "--out", str(folder / name)]
        for name, command in commands.items()
    } | {"evaluated": ["evaluate", "--out", str(folder / "evaluated"), "--reference", str(main / "world" / "model"),
                       "--data", str(main / "world" / "heldout.jsonl")]}  # fmt: skip


def record(target: Path, house: Path = ROOT) -> None:
    """Run every experiment with the code of a checkout and write its record."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(house), "PYTHONWARNINGS": "ignore"}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        environment["DPOBENCH_CACHE"] = str(folder / "cache")
        if DATA.is_dir():
            sft = DATA / "sft" / "alpaca_en_demo.json.gz"
            # The model is made by this checkout's script for both sides: it is an input, not a result.
            run(
                [sys.executable, str(ROOT / "tests" / "small_model.py"), str(folder / "model"), str(sft), "8"],
                environment,
                house,
            )
        for name, command in experiments(folder).items():
            if name == "evaluated":
                command = [*command, *two_checkpoints(folder / "main")]
            run([sys.executable, "-m", "dpobench", *command, "--workers", "2", "--threads", "1"], environment, house)
            write(folder / name, target / name)


def run(command: list[str], environment: dict[str, str], house: Path) -> None:
    done = subprocess.run(command, env=environment, cwd=house, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


def two_checkpoints(main: Path) -> list[str]:
    """One run of each of two variants, by name, and so whatever their ids are."""
    return [
        f"{name}={next(f for label, f in labels(main).items() if label.startswith(name))}" for name in ("dpo", "ipo")
    ]


def labels(out: Path) -> dict[str, Path]:
    """The folder of each run, by what the run is: variant, hyper-parameters, seed and condition."""
    folders = {}
    for file in sorted((out / "runs").glob("*/run.json")):
        record = json.loads(file.read_text(encoding="utf-8"))
        values = [record.get(key) for key in ("params", "learning_rate", "seed")]
        # A checkpoint that was entered has no condition: before the second format its record did not have the key.
        values.append(None if record.get("source") else record.get("condition"))
        folders[" ".join([record["variant"], *(json.dumps(one, sort_keys=True) for one in values)])] = file.parent
    assert len(folders) == len(list((out / "runs").glob("*/run.json"))), "two runs have one label"
    return dict(sorted(folders.items()))


def write(out: Path, target: Path) -> None:
    """Write down what one experiment folder holds."""
    names = {folder.name: label for label, folder in labels(out).items()}
    # Folders of shared inputs are named after hashes of code: they are told apart by what they hold.
    shared = [f for place in ("reference", "undertrained") for f in out.glob(f"{place}/*") if f.is_dir()]
    held = {folder: contents(folder, names) for folder in shared}
    lines = sorted(f"{folder.parent.name}: {line}" for folder in shared for line in held[folder])
    names |= {folder.name: f"{folder.parent.name}:{digest(str(held[folder]).encode())}" for folder in shared}
    for label, folder in labels(out).items():
        lines += [f"{label}: {line}" for line in contents(folder, names)]
    target.mkdir(parents=True, exist_ok=True)
    (target / "runs.txt").write_text("".join(f"{line}\n" for line in sorted(lines)), encoding="utf-8")
    for file in sorted((out / "report" / "tables").glob("*.csv")):
        (target / file.name).write_text(table(file, names), encoding="utf-8")
    for file in sorted((out / "report" / "figures").glob("*.svg")):
        (target / file.name).write_text(drawing(file, names), encoding="utf-8")


def contents(folder: Path, names: dict[str, str]) -> list[str]:
    """A hash of each file of numbers below a folder: weights, samples, scores, and what a training logged."""
    from safetensors import safe_open

    lines = []
    for file in sorted(folder.rglob("*")):
        place = str(file.relative_to(folder))
        if file.suffix == ".safetensors":
            with safe_open(file, "np") as tensors:
                content = "".join(
                    f"{key} {digest(tensors.get_tensor(key).tobytes())}\n" for key in sorted(tensors.keys())
                )
        elif file.suffix == ".parquet":
            content = frame(file)
        elif file.name == "log.jsonl":
            rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
            content = json.dumps([{k: v for k, v in row.items() if not MEASURED.search(k)} for row in rows])
        else:
            continue
        lines.append(f"{place} {digest(renamed(content, names).encode())}")
    return lines


def frame(file: Path) -> str:
    """The values of a table on disk, at full precision, its index and its library's metadata left out."""
    import pyarrow.parquet

    read = pyarrow.parquet.read_table(file)
    columns = {
        name: read.column(name).to_pylist() for name in sorted(read.column_names) if not name.startswith("__index")
    }
    return json.dumps(columns, default=repr)


def table(file: Path, names: dict[str, str]) -> str:
    import csv

    with file.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    columns = [name for name in (rows[0] if rows else {}) if not MEASURED.search(name)]
    text = (
        json.dumps(columns)
        + "\n"
        + "".join(json.dumps([row[name] for name in columns], ensure_ascii=False) + "\n" for row in rows)
    )
    return renamed(text, names)


def drawing(file: Path, names: dict[str, str]) -> str:
    text = re.sub(r"<metadata>.*?</metadata>", "", file.read_text(encoding="utf-8"), flags=re.DOTALL)
    return renamed(SVG_REFERENCE.sub("reference", text), names)


def renamed(text: str, names: dict[str, str]) -> str:
    for name in sorted(names, key=len, reverse=True):
        text = text.replace(name, names[name])
    return text


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def compare(one: Path, other: Path) -> list[str]:
    """What differs between two records: files that one lacks, and the first lines that differ in each other file."""
    files = [{str(f.relative_to(side)): f for f in side.rglob("*") if f.is_file()} for side in (one, other)]
    differences = [
        f"only in {side}: {name}"
        for side, a, b in ((one, *files), (other, *files[::-1]))
        for name in sorted(a.keys() - b)
    ]
    for name in sorted(files[0].keys() & files[1]):
        lines = [side[name].read_text(encoding="utf-8").splitlines() for side in files]
        if lines[0] != lines[1]:
            first = next((pair for pair in zip(*lines, strict=False) if pair[0] != pair[1]), ("", "one is longer"))
            differences.append(f"{name} differs:\n  - {first[0][:300]}\n  + {first[1][:300]}")
    return differences


def since(revision: str) -> list[str]:
    """Record a revision of this repository and this checkout, and compare."""
    with tempfile.TemporaryDirectory() as scratch:
        old, house = Path(scratch) / "old", Path(scratch) / "house"
        subprocess.run(
            ["git", "-C", str(ROOT), "worktree", "add", "--detach", str(house), revision],
            check=True,
            capture_output=True,
        )
        try:
            record(old, house)
        finally:
            subprocess.run(["git", "-C", str(ROOT), "worktree", "remove", "--force", str(house)], check=True)
        record(Path(scratch) / "new")
        return compare(old, Path(scratch) / "new")


def main(arguments: list[str]) -> None:
    match arguments:
        case ["record", folder]:
            record(Path(folder).resolve())
        case ["compare", one, other]:
            finish(compare(Path(one), Path(other)))
        case ["since", revision]:
            finish(since(revision))
        case _:
            sys.exit(__doc__)


def finish(differences: list[str]) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in differences) or "equal\n")
    sys.exit(1 if differences else 0)


if __name__ == "__main__":
    main(sys.argv[1:])
