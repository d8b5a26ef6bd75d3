"""Files are whole or absent, damage is named, and one process holds a folder."""

import os
import random
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dpobench.artifacts.files import (
    MANIFEST,
    building,
    digest,
    folder_hash,
    locked,
    read_json,
    seal,
    sealed,
    sweep_parts,
    verify,
    write_bytes,
    write_json,
)
from dpobench.errors import Damaged, Locked, UserError

ROOT = Path(__file__).parents[2]


def names(folder):
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*"))


class Interrupted(BaseException):
    """Stands for a kill: nothing catches it."""


@pytest.mark.parametrize("stage", ["fsync", "replace"])
def test_a_write_that_is_cut_off_leaves_the_old_content(stage, tmp_path, monkeypatch):
    file = tmp_path / "table.json"
    write_json(file, {"a": 1})

    def cut(*_):
        raise Interrupted

    monkeypatch.setattr(os, "fsync", cut) if stage == "fsync" else monkeypatch.setattr(Path, "replace", cut)
    with pytest.raises(Interrupted):
        write_json(file, {"a": 2})
    monkeypatch.undo()
    assert read_json(file) == {"a": 1}
    sweep_parts(tmp_path)
    assert names(tmp_path) == ["table.json"]


def test_a_full_disk_is_reported_with_bytes_and_leaves_no_part(tmp_path, monkeypatch):
    file = tmp_path / "table.json"
    write_bytes(file, b"old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"table\.json: 3 bytes could not be written \(No space left on device\)"):
        write_bytes(file, b"new")
    assert file.read_bytes() == b"old"
    assert names(tmp_path) == ["table.json"]


def test_a_reader_never_sees_a_part_of_a_file(tmp_path):
    """A process is killed at random moments while it writes; what stands there is one of the whole contents."""
    file = tmp_path / "content"
    script = (
        "import sys; from pathlib import Path; from dpobench.artifacts import files\n"
        "print('go', flush=True)\n"
        "for i in range(10**6): files.write_bytes(Path(sys.argv[1]), bytes([65 + i % 26]) * 200_000)"
    )
    draw = random.Random(0)
    for _ in range(4):
        process = subprocess.Popen([sys.executable, "-c", script, str(file)], cwd=ROOT, stdout=subprocess.PIPE)
        process.stdout.readline()
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.02 + 0.1 * draw.random())
        process.kill()
        process.communicate()
        if file.exists():
            content = file.read_bytes()
            assert len(content) == 200_000
            assert len(set(content)) == 1
    sweep_parts(tmp_path)
    assert names(tmp_path) == ["content"]


def test_a_folder_appears_whole_and_replaces_what_stood_there(tmp_path):
    for content in (b"one", b"two"):
        with building(tmp_path / "made") as part:
            (part / "file").write_bytes(content)
            assert not (tmp_path / "made" / "file").exists() or (tmp_path / "made" / "file").read_bytes() == b"one"
        assert (tmp_path / "made" / "file").read_bytes() == content
        assert names(tmp_path) == ["made", "made/file"]


@pytest.mark.parametrize("error", [ValueError, Interrupted])
@pytest.mark.parametrize("before", [False, True])
def test_an_exception_leaves_nothing_of_a_half_built_folder(error, before, tmp_path):
    target = tmp_path / "made"
    if before:
        target.mkdir()
        (target / "file").write_bytes(b"old")

    def build():
        with building(target) as part:
            (part / "file").write_bytes(b"half")
            raise error

    with pytest.raises(error):
        build()
    assert names(tmp_path) == (["made", "made/file"] if before else [])
    if before:
        assert (target / "file").read_bytes() == b"old"


@pytest.fixture
def whole(tmp_path):
    """A sealed folder of three files, one of them in a folder of its own."""
    draw, folder = random.Random(1), tmp_path / "sealed"
    (folder / "inner").mkdir(parents=True)
    for name, size in (("weights", 5000), ("log", 300), ("inner/scores", 900)):
        (folder / name).write_bytes(draw.randbytes(size))
    seal(folder)
    return folder


def test_an_untouched_folder_passes(whole):
    assert sealed(whole)
    verify(whole)
    assert set(read_json(whole / MANIFEST)["files"]) == {"weights", "log", "inner/scores"}


def test_a_folder_without_manifest_is_not_complete(tmp_path):
    assert not sealed(tmp_path)


def test_every_flipped_bit_is_detected_and_its_file_named(whole):
    draw, files = random.Random(2), ["weights", "log", "inner/scores"]
    for _ in range(200):
        name = draw.choice(files)
        honest = (whole / name).read_bytes()
        broken = bytearray(honest)
        broken[draw.randrange(len(broken))] ^= 1 << draw.randrange(8)
        (whole / name).write_bytes(broken)
        with pytest.raises(Damaged, match=f"{name} is not what was written"):
            verify(whole)
        (whole / name).write_bytes(honest)
    verify(whole)


@pytest.mark.parametrize("hashes", [True, False])
def test_every_truncation_is_detected_even_without_hashes(hashes, whole):
    draw, honest = random.Random(3), (whole / "weights").read_bytes()
    for _ in range(50):
        (whole / "weights").write_bytes(honest[: draw.randrange(len(honest))])
        with pytest.raises(Damaged, match="weights is not what was written"):
            verify(whole, hashes=hashes)


def test_a_missing_file_is_detected(whole):
    (whole / "inner" / "scores").unlink()
    with pytest.raises(Damaged, match=r"inner/scores is missing; remove .* and run again"):
        verify(whole)


def test_a_garbled_manifest_is_damage_and_not_a_crash(whole):
    draw, manifest = random.Random(4), whole / MANIFEST
    honest = manifest.read_bytes()
    for _ in range(100):
        manifest.write_bytes(honest[: draw.randrange(len(honest) - 2)])
        with pytest.raises(Damaged, match="DONE is damaged"):
            verify(whole)
    manifest.write_bytes(b"\xff\xfe")
    with pytest.raises(Damaged, match="DONE is damaged"):
        verify(whole)


def test_a_content_key_depends_on_names_bytes_and_order(tmp_path):
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest([1, 2]) != digest([2, 1])
    assert len(digest()) == 12
    (tmp_path / "one").write_bytes(b"x")
    first = folder_hash(tmp_path)
    (tmp_path / "one").rename(tmp_path / "two")
    assert folder_hash(tmp_path) != first


def test_parts_are_swept_and_nothing_else(tmp_path):
    (tmp_path / "runs" / ".run-1.77.part" / "deep").mkdir(parents=True)
    (tmp_path / "runs" / ".run-1.77.part" / "deep" / "file").write_bytes(b"x")
    (tmp_path / ".table.json.77.part").write_bytes(b"x")
    keep = ["part", "runs/a.part", ".hidden"]
    for name in keep:
        (tmp_path / name).write_bytes(b"kept")
    sweep_parts(tmp_path)
    assert names(tmp_path) == sorted([*keep, "runs"])


HOLD = """
import sys, time
from pathlib import Path
from dpobench.artifacts import files
with files.locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_process_is_refused_with_the_number_of_the_first(holder, tmp_path):
    wanted = rf"is in use by process {holder.pid} on \S+ since \d{{4}}-\d\d-\d\dT[\d:]+Z; wait for it or choose another"
    with pytest.raises(Locked, match=wanted), locked(tmp_path):
        pytest.fail("two processes hold one folder")


def test_a_killed_holder_frees_the_folder(holder, tmp_path):
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with locked(tmp_path):
        assert re.match(f"process {os.getpid()} on ", (tmp_path / ".lock").read_text())


def test_a_lock_is_free_after_its_block_and_after_an_exception(tmp_path):
    with pytest.raises(ValueError, match="inside"), locked(tmp_path):
        raise ValueError("inside")
    with locked(tmp_path):
        pass


def test_of_many_processes_that_start_together_one_wins(tmp_path):
    script = (
        "import sys, time; from pathlib import Path; from dpobench.artifacts import files; from dpobench.errors import Locked\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "try:\n"
        "    with files.locked(Path(sys.argv[1])): print('won', flush=True); sys.stdin.readline()\n"
        "except Locked: print('refused', flush=True)"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "results")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    racers = [subprocess.Popen(command, cwd=ROOT, **pipes) for _ in range(6)]
    for racer in racers:
        racer.stdout.readline()
    for racer in racers:
        racer.stdin.write("go\n")
        racer.stdin.flush()
    outcomes = [racer.stdout.readline().strip() for racer in racers]
    for racer in racers:
        racer.communicate()
    assert sorted(outcomes) == ["refused"] * 5 + ["won"]


def test_a_folder_that_cannot_be_built_is_named_without_a_traceback(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with (
        pytest.raises(UserError, match="report cannot be written: File exists"),
        building(tmp_path / "file" / "report"),
    ):
        raise AssertionError("nothing to fill")
