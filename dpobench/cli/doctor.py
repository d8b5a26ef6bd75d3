"""Is this installation able to do the job? One line a check."""

import importlib.metadata
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement

from dpobench.artifacts.files import cache_folder
from dpobench.errors import DpobenchError
from dpobench.evaluation.registry import evaluators, judges
from dpobench.losses.registry import variants


def examine() -> tuple[list[str], bool]:
    """Run all checks.

    Returns: lines to show, and whether nothing stands in the way.
    """
    lines = [*_libraries(), *_device(), *_plugins(), *_disk(), _hub()]
    healthy = not any(line.startswith("wrong") for line in lines)
    return [*lines, "ready" if healthy else "not ready: mend the lines marked wrong"], healthy


def _libraries() -> Iterator[str]:
    for text in importlib.metadata.requires("dpobench") or ():
        requirement = Requirement(text)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            yield f"wrong  {requirement.name} is not installed; pip install '{requirement}'"
            continue
        fits = requirement.specifier.contains(version, prereleases=True)
        yield f"{'ok   ' if fits else 'wrong'}  {requirement.name} {version}{'' if fits else f'; {requirement.specifier} is needed'}"


def _device() -> Iterator[str]:
    import torch

    cores = len(os.sched_getaffinity(0))
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            memory = torch.cuda.get_device_properties(index).total_memory
            yield f"ok     GPU {index}: {torch.cuda.get_device_name(index)}, {memory / 2**30:.0f} GiB"
    else:
        yield f"ok     no GPU: {cores} runs at a time on {cores} cores"
    matrix = torch.randn(512, 512)
    for dtype in (torch.float32, torch.bfloat16):
        value = matrix.to(dtype)
        began = time.perf_counter()
        for _ in range(10):
            value @ value
        rate = 10 * 2 * 512**3 / (time.perf_counter() - began) / 1e9
        yield f"ok     {str(dtype).removeprefix('torch.')} matrix products: {rate:,.0f} GFLOP/s on {torch.get_num_threads()} threads"


def _plugins() -> Iterator[str]:
    for shelf in (variants, evaluators, judges):
        names, broken = [], []
        for name in shelf.names():
            try:
                shelf.get(name)
                names.append(name)
            except DpobenchError as error:
                broken.append(f"wrong  {error}")
        yield f"ok     {shelf.kind}s: {', '.join(names)}"
        yield from broken
        yield from (f"wrong  {file.name} {why}" for file, why in shelf.broken.items())


def _disk() -> Iterator[str]:
    for label, folder in (("working folder", Path.cwd()), ("cache", cache_folder())):
        there = next(parent for parent in (folder, *folder.parents) if parent.exists())
        writable = os.access(there, os.W_OK)
        free = shutil.disk_usage(there).free / 1e9
        yield f"{'ok   ' if writable else 'wrong'}  {label}: {free:,.1f} GB free{'' if writable else ', not writable'}"


def _hub() -> str:
    offline = os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0")
    return f"ok     model hub: {'offline, local folders only' if offline else 'online, hub names are downloaded'}"
