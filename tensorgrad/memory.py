"""Reuse of freed memory on the CPU, memory in huge pages, and the pages of a file that nobody reads any more.

By default glibc returns the pages of a large array to the system as soon as it is freed. The next array of that size
gets new pages, which the kernel clears at the first access: this costs more than most arithmetic on the array. Every
training step frees and allocates the same sizes, so train.py, generate.py and the benchmarks keep freed memory instead:
the library does not, since the setting is one for the whole process, which may free large arrays of its own. This is
safe: malloc only reuses memory that was freed, and an array is freed when nothing refers to it.

The processor looks up where each page of memory lies, and remembers it for some pages alone. So Linux is asked for
pages of 2 MB in place of 4 KB. (NumPy asks for them for arrays of 4 MB and more; most are smaller.)
"""

import ctypes
import functools
import mmap
import os
import platform
import re
from contextlib import suppress
from pathlib import Path

# mallopt's parameters, from glibc's malloc.h
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -4, -8
NEVER_TRIM = -1
HEAP_GROWTH_BYTES = 64 * 2**20
HUGE_PAGE_SIZE = Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")
MAX_HUGE_PAGE_BYTES = 2**22  # on some ARM systems it is 512 MB: too much for an array of a few
OVERCOMMIT = Path("/proc/sys/vm/overcommit_memory")
STRICT = "2"  # addresses count as memory, whether they are used or not
MAPPINGS = Path("/proc/self/smaps")


@functools.cache
def keep_freed_memory() -> bool:
    """Make malloc keep freed memory in the whole process; returns whether it does: without glibc nothing changes."""
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    # One arena, the heap, for all threads.
    settings = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: NEVER_TRIM, M_TOP_PAD: HEAP_GROWTH_BYTES, M_ARENA_MAX: 1}
    if not all(libc.mallopt(parameter, value) == 1 for parameter, value in settings.items()):
        return False
    with suppress(OSError, ValueError):  # a kernel without huge pages
        if int(HUGE_PAGE_SIZE.read_text()) <= MAX_HUGE_PAGE_BYTES and OVERCOMMIT.read_text().strip() != STRICT:
            _ask_for_huge_pages(libc)
    return True


def _ask_for_huge_pages(libc: ctypes.CDLL) -> None:
    """Let the heap grow to half of the machine's memory at once, and ask for huge pages there.

    What is never written takes no memory. A later growth of the heap would have small pages: the kernel notes the wish
    with a range of addresses.
    """
    size = os.sysconf("SC_PHYS_PAGES") * mmap.PAGESIZE // 2
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    block = libc.malloc(size)
    if block:  # otherwise a limit forbids so many addresses
        first = -(-block // mmap.PAGESIZE) * mmap.PAGESIZE
        _advise(libc, first, (block + size - first) // mmap.PAGESIZE * mmap.PAGESIZE, mmap.MADV_HUGEPAGE)
        libc.free(block)


def forget_pages(library: str) -> None:
    """Take the pages of a loaded library that were only read out of this process; a later access brings them back.

    Linux counts a page of a file that a process has mapped as its memory (VmRSS), and so do programs that limit it.
    When memory is short, it takes such pages back by itself. On other systems nothing happens.
    """
    try:
        mappings = MAPPINGS.read_text()
    except OSError:
        return
    libc = ctypes.CDLL(None)
    mapping = rf"(?m)^([0-9a-f]+)-([0-9a-f]+) .*/{re.escape(library)}\n((?:\w+:.*\n)+)"
    for first, last, counts in re.findall(mapping, mappings):
        if re.search(r"(?m)^Private_Dirty: +0 kB$", counts):  # a page that was written would be lost
            _advise(libc, int(first, 16), int(last, 16) - int(first, 16), mmap.MADV_DONTNEED)


def _advise(libc: ctypes.CDLL, first: int, size: int, advice: int) -> None:
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    libc.madvise(first, size, advice)
