"""Process-wide memory settings that make a model on a CPU faster."""

from __future__ import annotations

import ctypes
import platform

M_TRIM_THRESHOLD = -1
M_TOP_PAD = -2
M_MMAP_THRESHOLD = -3
"""Parameter numbers of mallopt(3), from glibc's malloc.h."""
TOP_PAD_BYTES = 256 * 2**20
UNLIMITED_BYTES = 2**31 - 1
"""mallopt takes a C int."""


def keep_freed_pages() -> bool:
    """Tell glibc's malloc to keep freed memory instead of giving it back to the kernel; True if it agreed.

    Every step, and every batch that is answered, frees and asks again for the same large activations. By default each
    one is mapped afresh, and the kernel hands it out page by page through page faults, which cost a small model more
    than its arithmetic.
    Only allocations after the call are affected. Other C libraries have no mallopt, so nothing is done there.
    """
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    mallopt.argtypes = [ctypes.c_int, ctypes.c_int]
    mallopt.restype = ctypes.c_int
    agreed = [
        mallopt(M_MMAP_THRESHOLD, UNLIMITED_BYTES),
        mallopt(M_TRIM_THRESHOLD, UNLIMITED_BYTES),
        mallopt(M_TOP_PAD, TOP_PAD_BYTES),
    ]
    return all(agreed)
