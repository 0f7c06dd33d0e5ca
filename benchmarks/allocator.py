"""Keep the memory that a model frees, on Linux: as fast as a CPU gets, for the dense model first of all.

glibc hands large blocks back to the system as soon as they are freed, and every page of the next one is faulted in
again. Dense models free the largest blocks and lose most by it, so that they would look slower than they are.
"""

from __future__ import annotations

import ctypes
import sys

TRIM_THRESHOLD, MMAP_MAX = -1, -4  # parameters of mallopt, from malloc.h


def keep_freed_memory() -> bool:
    """Tell glibc to keep freed memory in this process from now on; whether it does."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # another C library
        return False
    return bool(mallopt(MMAP_MAX, 0)) and bool(mallopt(TRIM_THRESHOLD, 2**31 - 1))
