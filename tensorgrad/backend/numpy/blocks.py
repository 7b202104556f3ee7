"""How NumPy uses all threads: work is split into blocks, and every call to NumPy runs on a single thread."""

import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any

from tensorgrad.backend.arrays import Array, as_rows, is_half
from tensorgrad.backend.runtime import Backend
from tensorgrad.backend.threads import cpu_count, team

# A block is a megabyte of float32. Smaller blocks would fit the caches better, but only one thread at a time holds the
# GIL, and a thread that has to wait for it sleeps for 10 to 50 microseconds: calls have to be few and long.
BLOCK_ELEMENTS = 2**18
MIN_BLOCKED_ELEMENTS = 2**12  # for fewer, `math.py` is as fast
MIN_PARALLEL_ELEMENTS = 2**17  # for fewer, waking the other threads costs more than they save
HEAD_START_ELEMENTS = 2**15  # the calling thread computes about so many before the other threads are awake


class Blocks(Backend):
    """Runs functions on blocks of arrays, on all threads."""

    threads = cpu_count()  # shared by all CPU backends; see `tensorgrad.set_num_threads`

    def _in_blocks(self, fn: Callable[..., None], *arrays: Array) -> None:
        """fn(*parts) for contiguous arrays of one shape."""
        flat = [x.reshape(-1) for x in arrays]
        self._on_all_threads(fn, [tuple(x[part] for x in flat) for part in self._blocks(flat[0].size)])

    def _in_blocks_of_rows(self, fn: Callable[..., None], *arrays: Array) -> None:
        """fn(*parts) for contiguous arrays (..., n) and (..., 1), the first of them (..., n)."""
        rows = [as_rows(x) for x in arrays]
        self._on_all_threads(fn, [tuple(x[part] for x in rows) for part in self._blocks(*rows[0].shape)])

    def _in_blocks_of_each(self, fn: Callable[..., None], *lists: Iterable[Array]) -> None:
        """fn(*parts) for the first array of every list, then for the second, ...; only contiguous arrays are split."""
        parts: list[tuple[Array, ...]] = []
        for arrays in zip(*lists, strict=True):
            if all(x.flags.c_contiguous for x in arrays):
                flat = [x.reshape(-1) for x in arrays]
                blocks = split(flat[0].size, math.ceil(flat[0].size / BLOCK_ELEMENTS))
                parts += [tuple(x[block] for x in flat) for block in blocks]
            else:
                parts.append(arrays)
        if sum(part[0].size for part in parts) >= MIN_PARALLEL_ELEMENTS:
            self._on_all_threads(fn, parts)
        else:
            for part in parts:
                fn(*part)

    def _on_all_threads(self, fn: Callable[..., None], parts: list[tuple[Any, ...]]) -> None:
        """fn(*part) for every part, in any order."""
        team(self.threads).run(fn, parts)

    def _blocks(self, n: int, width: int = 1) -> list[slice]:
        """n rows of that width in blocks, equally many for every thread."""
        if n * width < MIN_PARALLEL_ELEMENTS:
            return split(n, 1)
        blocks_per_thread = math.ceil(n * width / (BLOCK_ELEMENTS * self.threads))
        return split(n, self.threads * blocks_per_thread, HEAD_START_ELEMENTS // width)


def split(n: int, n_parts: int, head_start: int = 0) -> list[slice]:
    """Split range(n) into n_parts slices of equal size, or fewer where n is small; the first has head_start more.

    The calling thread starts on the first slice while the others wake up.
    """
    n_parts = max(1, min(n - head_start, n_parts))
    bounds = [head_start + (n - head_start) * i // n_parts for i in range(1, n_parts + 1)]
    return [slice(start, stop) for start, stop in itertools.pairwise([0, *bounds])]


def same_layout(*arrays: Array) -> bool:
    """Whether all arrays are contiguous and have one shape and one dtype, which is not half precision."""
    first = arrays[0]
    return not is_half(first.dtype) and all(
        x.flags.c_contiguous and x.shape == first.shape and x.dtype == first.dtype for x in arrays
    )
