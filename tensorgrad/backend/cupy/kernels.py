"""What the families of kernels have in common: which arrays they take, and how many threads they start for them."""

import math
from functools import cached_property
from typing import Any

import numpy as np

from tensorgrad.backend.arrays import Array
from tensorgrad.backend.cupy.launcher import Launcher, c_type
from tensorgrad.backend.cupy.signature import C_TYPES
from tensorgrad.backend.runtime import Backend

THREADS = 256  # of a block, where nothing speaks for another number
WARPS = THREADS // 32
MAX_BLOCKS_OF_ROWS = 256  # of a sum over rows


class Kernels(Backend):
    """A backend with kernels of its own; what they do not take goes on to the plain mathematics."""

    launcher: Launcher

    @cached_property
    def copy_stream(self) -> Any:
        """Where host memory is copied from, beside what is computed."""
        return self.xp.cuda.Stream(non_blocking=True)

    def upload(self, x: Any) -> Array:
        """A NumPy array on the GPU, to be read by kernels of the current stream and of graphs that it records."""
        if not self.xp.cuda.get_current_stream().is_capturing():
            return self.xp.asarray(x)
        with self.copy_stream:  # a copy that was recorded would read host memory again, long after it was freed
            on_gpu = self.xp.asarray(x)
        self.copy_stream.synchronize()
        return on_gpu

    def contiguous(self, x: Array) -> Array:
        """x itself, or a copy without strides: kernels know no strides."""
        return x if x.flags.c_contiguous else self.xp.ascontiguousarray(x)

    def column_sums(self, x: Array, dtype: Any) -> Array:
        """The sum over the rows of x (rows, n), in two launches: (n,) of that dtype."""
        n_rows, n = x.shape
        partial = x
        if n_rows > WARPS:
            blocks, rows_a_block = blocks_of_rows(n_rows)
            partial = self.xp.empty((blocks, n), wide_dtype(x.dtype))
            self._column_sums(x, partial, rows_a_block)
        sums = self.xp.empty(n, dtype)
        self._column_sums(partial, sums, len(partial))
        return sums

    def _column_sums(self, x: Array, sums: Array, rows_a_block: int) -> None:
        n_rows, n = x.shape
        per_lane = columns_a_lane(n, x) if sums.ndim == 2 else 1  # the second launch is small: more blocks, less each
        self.launcher.launch(
            "linear", "column_sum", (-(-n // (32 * per_lane)), -(-n_rows // rows_a_block)), (THREADS,),
            (x, sums, np.int64(n_rows), np.int32(rows_a_block), np.int32(n), np.int32(per_lane)),
            defines={"T": c_type(x.dtype), "O": c_type(sums.dtype)},
        )  # fmt: skip


def claimed(*arrays: Array | None) -> bool:
    """Whether kernels can have the arrays: not empty, and all of one floating dtype."""
    given = [x for x in arrays if x is not None]
    return all(x.size and x.dtype == given[0].dtype for x in given) and given[0].dtype.name in C_TYPES


def wide_dtype(dtype: Any) -> Any:
    """What a kernel computes in: float32 for half precision, the dtype itself otherwise."""
    return np.dtype(np.float64 if dtype.name == "float64" else np.float32)


def n_rows(x: Array) -> int:
    """How many rows (..., n) has."""
    return math.prod(x.shape[:-1])


def blocks_of_rows(rows: int) -> tuple[int, int]:
    """How many blocks to sum over, and of how many rows: a function of the shape alone, and so is the result."""
    rows_a_block = max(2 * WARPS, -(-rows // MAX_BLOCKS_OF_ROWS))
    return -(-rows // rows_a_block), rows_a_block


def columns_a_lane(n: int, *arrays: Array) -> int:
    """16 bytes of columns where every row of the arrays begins at a multiple of that, else 1."""
    itemsize = arrays[0].dtype.itemsize
    fits = n * itemsize % 16 == 0 and all(x.data.ptr % 16 == 0 for x in arrays)
    return int(16 // itemsize) if fits else 1


def threads_for(x: Array) -> int:
    """Whole warps for a row of (..., n) by 16 bytes a thread, and not more than are useful."""
    per_thread = 16 // x.dtype.itemsize
    return int(min(1024, max(32, -(-x.shape[-1] // (32 * per_thread)) * 32)))
