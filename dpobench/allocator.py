"""How the C library's allocator treats large blocks: given back to the system at once, or kept."""

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager

# Options of mallopt in glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEEP = 2**31 - 1
# Where glibc's own adjustment ends after the first large block was freed: blocks above 32 MiB are still mapped and unmapped each time.
_USUAL = {_MMAP_THRESHOLD: 32 * 2**20, _TRIM_THRESHOLD: 64 * 2**20}


def keep_pages() -> bool:
    """Keep freed blocks in the process instead of returning them to the system.

    A training step frees and asks for the same large blocks again and again; each time the system would have to map and clear
    their pages anew. Resident memory then stays at its peak.

    Returns: whether this C library knows the setting (glibc does).
    """
    return _set({_MMAP_THRESHOLD: _KEEP, _TRIM_THRESHOLD: _KEEP})


@contextmanager
def as_usual() -> Iterator[None]:
    """For a block, what glibc does by itself in a process that has freed large blocks; pages are kept again afterwards."""
    _set(_USUAL)
    try:
        yield
    finally:
        keep_pages()


def _set(options: dict[int, int]) -> bool:
    if platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    return all(library.mallopt(option, value) == 1 for option, value in options.items())
