"""What a training cost beside its time: passes, and the most memory where the system tells it."""

from collections.abc import Mapping
from pathlib import Path

import torch

Cost = Mapping[str, int | None]
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def begin(device: torch.device) -> None:
    """From here on the peak is measured anew; what was allocated before and still lies there counts."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        _CLEAR.write_text("5")
    except OSError:  # no Linux, or not allowed: then no peak is told
        return


def paid(before: Cost, forwards: int, backwards: int, device: torch.device) -> dict[str, int | None]:
    """What has been spent after a step.

    Args:
        before: what had been spent before it; empty at first.
        forwards: pairs that a model computed in this step, each time it did.
        backwards: pairs that a gradient went back through.
        device: of the training.

    Returns: `forwards` and `backwards`, sums over the steps; `peak_bytes` since `begin`, None where the system does not tell.
    """
    spent = {"forwards": forwards, "backwards": backwards}
    total = {name: (before.get(name) or 0) + number for name, number in spent.items()}
    # Of a training that went on after a kill the higher of both peaks.
    peaks = [peak for peak in (before.get("peak_bytes"), peak_bytes(device)) if peak is not None]
    return total | {"peak_bytes": max(peaks, default=None)}


def peak_bytes(device: torch.device) -> int | None:
    """The most since `begin`: what the allocator handed out on CUDA, else the whole process's resident memory.

    Returns: bytes; None where the system does not tell. The largest of the process's whole life would be another run's in a worker
        that did several, so that is never given in its place.
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if not (_CLEAR.exists() and _STATUS.exists()):
        return None
    found = [line.split()[1] for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:")]
    return 1024 * int(found[0]) if found else None
