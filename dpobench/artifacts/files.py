"""Files that are whole or absent: atomic writes, published folders, manifests, the lock on a results folder."""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from dpobench.errors import Damaged, Locked, UserError

MANIFEST = "DONE"
# Of everything written as JSON into the folder of an experiment; increased when older code could no longer read it.
FORMAT = 2


class StoredFile(BaseModel):
    """Size and SHA-256 of one file of a manifest."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    bytes: int
    sha256: str


class Manifest(BaseModel):
    """The files of a sealed folder, by their place in it."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    format: int = FORMAT
    files: dict[str, StoredFile]


def digest(*parts: object) -> str:
    """Content key of anything JSON can hold: 12 hexadecimal digits."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def folder_hash(folder: Path, patterns: tuple[str, ...] = ("*",)) -> str:
    """Content key of the files in a folder, names and bytes."""
    files = sorted({file for pattern in patterns for file in folder.rglob(pattern) if file.is_file()})
    return digest([(file.relative_to(folder).as_posix(), file_hash(file)) for file in files])


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        free = shutil.disk_usage(path.parent).free
        raise UserError(
            f"{path}: {len(content):,} bytes could not be written ({error.strerror}); {free:,} bytes are free"
        ) from error


def write_json(path: Path, content: object) -> None:
    """Write JSON atomically, keys in the order given."""
    write_bytes(path, (json.dumps(content, indent=1, default=str) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        Damaged: the file is missing, or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise Damaged(f"{path} is missing; run again, only this part is made anew") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise Damaged(f"{path} is damaged ({error}); remove it and run again, only this part is made anew") from error


def refuse_format(folder: Path, content: object) -> None:
    """Refuse JSON of another format; before formats were written down there was the first.

    Args:
        folder: where it lies.
        content: what was read.

    Raises:
        UserError: both numbers are named.
    """
    written = content.get("format", 1) if isinstance(content, dict) else 1
    if written != FORMAT:
        raise UserError(
            f"{folder}: written in format {written}, this dpobench reads format {FORMAT}; run again into another --out, or use the "
            "dpobench that wrote it"
        )


@contextlib.contextmanager
def building(target: Path) -> Iterator[Path]:
    """Build a folder next to its final place and publish it by one rename.

    Yields: an empty folder to fill. After the block it stands at `target`; after an exception it is gone.

    Raises:
        UserError: the place cannot be written.
    """
    temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
    except OSError as error:
        raise UserError(
            f"{target} cannot be written: {error.strerror}; copy its folder to a place that you may write"
        ) from error
    try:
        yield temporary
        publish(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def publish(part: Path, target: Path) -> None:
    """Make a folder durable and move it to its place by one rename, replacing what stood there."""
    for file in part.rglob("*"):
        if file.is_file():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
    if target.exists():
        old = part.with_name(f".{target.name}.old.part")
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
        part.rename(target)
        shutil.rmtree(old)
    else:
        part.rename(target)
    parent = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)


def sweep_parts(folder: Path) -> None:
    """Remove what an interrupted process left half built. Call it only while holding the lock."""
    for part in folder.rglob(".*.part"):
        shutil.rmtree(part) if part.is_dir() else part.unlink()


def seal(folder: Path) -> None:
    """Write the manifest: size and SHA-256 of every file. Its presence means the folder is complete."""
    files = {}
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder).as_posix()
        if file.is_file() and name != MANIFEST:
            files[name] = StoredFile(bytes=file.stat().st_size, sha256=file_hash(file))
    write_json(folder / MANIFEST, Manifest(files=files).model_dump())


def sealed(folder: Path) -> bool:
    """Whether the folder carries a manifest."""
    return (folder / MANIFEST).is_file()


def verify(folder: Path, *, hashes: bool = True) -> None:
    """Compare a sealed folder with its manifest.

    Raises:
        Damaged: a file is missing, or has another size or hash; it is named.
    """
    content = read_json(folder / MANIFEST)
    refuse_format(folder, content)
    try:
        files = Manifest.model_validate(content).files
    except ValidationError as error:
        raise Damaged(
            f"{folder / MANIFEST} is damaged; remove {folder} and run again, only this part is made anew"
        ) from error
    for name, stored in files.items():
        file = folder / name
        if not file.is_file():
            raise Damaged(f"{file} is missing; remove {folder} and run again, only this part is made anew")
        if file.stat().st_size != stored.bytes or (hashes and file_hash(file) != stored.sha256):
            raise Damaged(f"{file} is not what was written; remove {folder} and run again, only this part is made anew")


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a results folder alone; the kernel frees it when the process ends, however it ends.

    Raises:
        Locked: another process holds it; the message names it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be used as a results folder: {error.strerror}; choose another --out"
        ) from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(handle, 200).decode(errors="replace").strip() or "another process"
            raise Locked(f"{folder} is in use by {holder}; wait for it or choose another --out") from None
        os.ftruncate(handle, 0)
        since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()} since {since}\n".encode(), 0)
        yield
    finally:
        os.close(handle)


def cache_folder() -> Path:
    """`$DPOBENCH_CACHE`, or a folder in the user's cache folder."""
    if named := os.environ.get("DPOBENCH_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "dpobench"
