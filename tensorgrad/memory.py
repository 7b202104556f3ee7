"""Reuse of freed memory on the CPU.

By default glibc gives a large array's pages back to the system as soon as it is freed, and the next array of that size
is made of new pages, each cleared by the kernel at its first touch: that costs more than most arithmetic done on it. A
training step frees and allocates the same sizes again and again, so the process keeps what it has freed. malloc hands
out only what was freed, and an array is freed when nothing refers to it: no buffer can be in use twice.
"""

import ctypes
import functools
import platform

# mallopt's parameters, from glibc's malloc.h
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
NEVER = 2**31 - 1  # bytes free at the top of the heap before any are given back: the largest that an int holds
STEP = 64 * 2**20  # bytes to grow the heap by at a time


@functools.cache
def keep_freed_memory() -> bool:
    """Have malloc keep freed memory for the next array, from now on, in the whole process.

    Returns whether it does: elsewhere than on glibc nothing is changed.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, NEVER), (M_TOP_PAD, STEP))
    return all(mallopt(parameter, value) == 1 for parameter, value in settings)
