"""Reuse of freed memory on the CPU.

By default glibc returns the pages of a large array to the system as soon as it is freed. The next array of that size
gets new pages, which the kernel clears at the first access: this costs more than most arithmetic on the array. Every
training step frees and allocates the same sizes, so train.py, generate.py and the benchmarks keep freed memory instead:
the library does not, since the setting is one for the whole process, which may free large arrays of its own. This is
safe: malloc only reuses memory that was freed, and an array is freed when nothing refers to it.
"""

import ctypes
import functools
import platform

# mallopt's parameters, from glibc's malloc.h
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
TRIM_THRESHOLD_BYTES = 2**31 - 1  # free bytes at the top of the heap before any are returned: the largest int
HEAP_GROWTH_BYTES = 64 * 2**20


@functools.cache
def keep_freed_memory() -> bool:
    """Make malloc keep freed memory in the whole process; returns whether it does: without glibc nothing changes."""
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES), (M_TOP_PAD, HEAP_GROWTH_BYTES))
    return all(mallopt(parameter, value) == 1 for parameter, value in settings)
