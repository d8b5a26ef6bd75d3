"""What a training cost besides its time: passes, and the most memory where the system reports it."""

from pathlib import Path

import torch

from dpobench.artifacts.records import Cost

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def with_step(cost: Cost, forwards: int, backwards: int, peak: int | None) -> Cost:
    """The cost of a training with one more step.

    Args:
        cost: so far.
        forwards: pairs that a model computed in this step, each time it did.
        backwards: pairs that a gradient went back through.
        peak: from `peak_bytes`. Of a training that went on after a kill the higher of both peaks counts.

    Example:
        >>> with_step(Cost(forwards=8, backwards=4, peak_bytes=90), forwards=8, backwards=4, peak=70)
        Cost(forwards=16, backwards=8, peak_bytes=90)
    """
    peaks = [one for one in (cost.peak_bytes, peak) if one is not None]
    return Cost(
        forwards=cost.forwards + forwards, backwards=cost.backwards + backwards, peak_bytes=max(peaks, default=None)
    )


def begin(device: torch.device) -> None:
    """From here on the peak is measured anew; what was allocated before and is still in use counts."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        _CLEAR.write_text("5")
    except OSError:  # no Linux, or not allowed: then no peak is reported
        return


def peak_bytes(device: torch.device) -> int | None:
    """The most memory since `begin`: what the allocator handed out on CUDA, else the whole process's resident memory.

    Returns: bytes; None where the system does not report it. The largest of the process's whole life would be another run's in a
        worker that did several, so that is never given in its place.
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if not (_CLEAR.exists() and _STATUS.exists()):
        return None
    kilobytes = [line.split()[1] for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:")]
    return 1024 * int(kilobytes[0]) if kilobytes else None
