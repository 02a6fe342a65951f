"""How memory is allocated while the benchmark runs."""

import ctypes

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
"""Parameters of glibc's mallopt."""


def keep_freed_memory() -> bool:
    """Make the process keep the memory that it frees, and return whether that was possible.

    glibc returns large blocks to the system and requests new pages in the next step. That costs up to a sixth of a
    float32 step, depending on what happens to lie at the end of the heap, so it may hit any one of several variants in
    a process. Kept memory costs no variant anything. Allocators other than glibc's stay as they are.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(_TRIM_THRESHOLD, -1)) and bool(mallopt(_MMAP_MAX, 0))
