"""How plain NumPy takes all threads: work is cut into blocks, and every call to NumPy is one thread's."""

import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any

from tensorgrad.backend.arrays import Array, as_rows, is_half
from tensorgrad.backend.runtime import Backend
from tensorgrad.backend.threads import cpu_count, team

# Elements of a block, a megabyte of float32. Smaller ones would stay nearer, but the interpreter is one thread's at a
# time, and a thread that finds it taken falls asleep for 10 to 50 microseconds: calls have to be few and long.
BLOCK = 2**18
FEW = 2**12  # elements; below, the plain mathematics is as fast
SMALL = 2**17  # elements; below, waking the other threads costs more than they save
AHEAD = 2**15  # elements that the caller is through with when the other threads are awake


class Blocks(Backend):
    """Cutting arrays into blocks, and the threads that take them."""

    threads = cpu_count()  # one number for all CPU backends: `tensorgrad.set_num_threads`

    def _in_blocks(self, fn: Callable[..., None], *arrays: Array) -> None:
        """fn(*parts) for contiguous arrays of one shape."""
        flat = [x.reshape(-1) for x in arrays]
        self._on_all_threads(fn, [tuple(x[part] for x in flat) for part in self._blocks(flat[0].size)])

    def _in_blocks_of_rows(self, fn: Callable[..., None], *arrays: Array) -> None:
        """fn(*parts) for contiguous arrays (..., n) and (..., 1), the first of them (..., n)."""
        rows = [as_rows(x) for x in arrays]
        self._on_all_threads(fn, [tuple(x[part] for x in rows) for part in self._blocks(*rows[0].shape)])

    def _in_blocks_of_each(self, fn: Callable[..., None], *lists: Iterable[Array]) -> None:
        """fn(*parts) for the first arrays of all lists, for the second, ...: in blocks, or whole if not contiguous."""
        parts: list[tuple[Array, ...]] = []
        for arrays in zip(*lists, strict=True):
            if all(x.flags.c_contiguous for x in arrays):
                flat = [x.reshape(-1) for x in arrays]
                parts += [tuple(x[part] for x in flat) for part in cut(flat[0].size, -(-flat[0].size // BLOCK))]
            else:
                parts.append(arrays)
        if sum(part[0].size for part in parts) >= SMALL:
            self._on_all_threads(fn, parts)
        else:
            for part in parts:
                fn(*part)

    def _on_all_threads(self, fn: Callable[..., None], parts: list[tuple[Any, ...]]) -> None:
        """fn(*part) for every part, in any order."""
        team(self.threads).run(fn, parts)

    def _blocks(self, n: int, width: int = 1) -> list[slice]:
        """n rows of that width in blocks, as many for every thread."""
        if n * width < SMALL:
            return cut(n, 1)
        return cut(n, self.threads * math.ceil(n * width / (BLOCK * self.threads)), AHEAD // width)


def cut(n: int, n_parts: int, ahead: int = 0) -> list[slice]:
    """0 to n in so many equal parts, or n of them; the first, which the caller begins before others wake, is longer."""
    n_parts = max(1, min(n - ahead, n_parts))
    bounds = [ahead + (n - ahead) * i // n_parts for i in range(1, n_parts + 1)]
    return [slice(start, stop) for start, stop in itertools.pairwise([0, *bounds])]


def alike(*arrays: Array) -> bool:
    """Whether all are contiguous, of one shape and of one dtype that is no half precision."""
    first = arrays[0]
    return not is_half(first.dtype) and all(
        x.flags.c_contiguous and x.shape == first.shape and x.dtype == first.dtype for x in arrays
    )
