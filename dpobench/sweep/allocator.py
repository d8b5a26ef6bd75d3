"""How the C library's allocator treats large blocks: given back to the system at once, or kept."""

import ctypes
import platform

# Options of mallopt in glibc's malloc.h: above which size free memory is returned, and a block mapped by itself.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_NEVER = 2**31 - 1
# The most that glibc before 2.35 takes for the second.
_LARGEST = 32 * 2**20


def keep_pages() -> bool:
    """Keep freed blocks in the process instead of returning them to the system.

    A training step frees and asks for the same large blocks again and again; each time the system would have to map and clear
    their pages anew. Resident memory then stays at its peak.

    Returns: whether this C library knows the setting (glibc does).
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    trims = library.mallopt(_TRIM_THRESHOLD, _NEVER) == 1
    return trims and any(library.mallopt(_MMAP_THRESHOLD, size) == 1 for size in (_NEVER, _LARGEST))
