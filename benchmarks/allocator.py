"""How memory is handed out while the benchmark runs."""

import ctypes

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
"""The parameters of glibc's mallopt."""


def keep_freed_memory() -> bool:
    """Have the process keep the memory that it frees; answers whether it could be told so.

    glibc gives large pieces back to the system and asks for new pages in the next step. What that costs, up to a sixth
    of a float32 step, depends on what else happens to lie at the end of the heap: of several variants in one process
    it falls on any one. Kept memory costs all variants nothing. Allocators other than glibc's stay as they are.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(_TRIM_THRESHOLD, -1)) and bool(mallopt(_MMAP_MAX, 0))
