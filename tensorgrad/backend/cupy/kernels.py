"""What the families of kernels share: the arrays that they support, and the number of threads per launch."""

import math
from functools import cached_property
from typing import Any

import numpy as np

from tensorgrad.backend.arrays import Array
from tensorgrad.backend.cupy.launcher import Launcher, c_type
from tensorgrad.backend.cupy.signature import C_TYPES
from tensorgrad.backend.runtime import Backend

THREADS = 256  # of a block, by default
WARPS = THREADS // 32
MAX_BLOCKS_OF_ROWS = 256  # of a sum over rows
ROW_MULTIPLE = 64  # elements, of which the distance of padded rows is a multiple


class Kernels(Backend):
    """A backend with CUDA kernels; arrays that they do not support are left to `math.py`."""

    launcher: Launcher
    autotune = False  # time several algorithms for every new product, instead of using the heuristic's first choice

    @cached_property
    def copy_stream(self) -> Any:
        """The stream for copies from the host, which run beside the kernels."""
        return self.xp.cuda.Stream(non_blocking=True)

    def upload(self, x: Any) -> Array:
        """Copy a NumPy array to the GPU, for kernels of the current stream and of graphs that it records."""
        if not self.xp.cuda.get_current_stream().is_capturing():
            return self.xp.asarray(x)
        with self.copy_stream:  # a recorded copy would be replayed when the host memory has been freed
            on_gpu = self.xp.asarray(x)
        self.copy_stream.synchronize()
        return on_gpu

    def contiguous(self, x: Array | None) -> Array:
        """x, or a contiguous copy; None is returned as it is."""
        return x if x is None or x.flags.c_contiguous else self.xp.ascontiguousarray(x)

    def with_rows(self, x: Array) -> Array:
        """x (rows, n), or a contiguous copy where its rows are not contiguous."""
        return x if has_rows(x) else self.xp.ascontiguousarray(x)

    def aligned_rows(self, shape: tuple[int, int], dtype: Any, *, padded: bool) -> Array:
        """An array (rows, n) that nothing has been written to; every row is aligned to 16 bytes if it is `padded`."""
        if not padded:
            return self.xp.empty(shape, dtype)
        rows, n = shape
        return self.xp.empty((rows, -(-n // ROW_MULTIPLE) * ROW_MULTIPLE), dtype)[:, :n]

    def indices(self, x: Array) -> Array:
        """Integers as a contiguous array of int32 or int64."""
        return self.contiguous(x if x.dtype.name in ("int32", "int64") else x.astype(np.int64))

    def column_sums(self, x: Array, dtype: Any) -> Array:
        """The sum over the rows of x (rows, n), in two launches: (n,) of that dtype."""
        n_rows, n = x.shape
        partial = x
        if n_rows > WARPS:
            blocks, rows_per_block = blocks_of_rows(n_rows)
            partial = self.xp.empty((blocks, n), wide_dtype(x.dtype))
            self._column_sums(x, partial, rows_per_block)
        sums = self.xp.empty(n, dtype)
        self._column_sums(partial, sums, len(partial))
        return sums

    def _column_sums(self, x: Array, sums: Array, rows_per_block: int) -> None:
        n_rows, n = x.shape
        per_lane = columns_per_lane(n, x) if sums.ndim == 2 else 1  # the second launch is small: use more blocks
        self.launcher.launch(
            "linear", "column_sum", (-(-n // (32 * per_lane)), -(-n_rows // rows_per_block)), (THREADS,),
            (x, sums, np.int64(n_rows), np.int32(rows_per_block), np.int32(n), np.int32(per_lane)),
            defines={"T": c_type(x.dtype), "O": c_type(sums.dtype)},
        )  # fmt: skip


def supported(*arrays: Array | None) -> bool:
    """Whether kernels support the arrays: none is empty, and all have one floating dtype."""
    given = [x for x in arrays if x is not None]
    return all(x.size and x.dtype == given[0].dtype for x in given) and given[0].dtype.name in C_TYPES


def wide_dtype(dtype: Any) -> Any:
    """The dtype that a kernel computes in: float32 for half precision, otherwise the dtype itself."""
    return np.dtype(np.float64 if dtype.name == "float64" else np.float32)


def has_rows(x: Array) -> bool:
    """Whether the rows of x (rows, n) are contiguous, at any distance from each other."""
    distance, step = x.strides
    return bool(step == x.itemsize and distance >= x.shape[1] * step and distance % step == 0)


def row_stride(x: Array) -> np.int64:
    """The elements from a row of x to the next."""
    return np.int64(x.strides[0] // x.itemsize)


def n_rows(x: Array) -> int:
    """The number of rows of x (..., n)."""
    return math.prod(x.shape[:-1])


def blocks_of_rows(rows: int) -> tuple[int, int]:
    """The number of blocks of a sum over rows, and of rows in each; a function of the shape, for reproducible sums."""
    rows_per_block = max(2 * WARPS, -(-rows // MAX_BLOCKS_OF_ROWS))
    return -(-rows // rows_per_block), rows_per_block


def columns_per_lane(n: int, *arrays: Array) -> int:
    """The columns that a lane reads at once: 16 bytes of them where every row is aligned to 16 bytes, else 1."""
    itemsize = arrays[0].dtype.itemsize
    fits = n * itemsize % 16 == 0 and all(x.data.ptr % 16 == 0 for x in arrays)
    return int(16 // itemsize) if fits else 1


def threads_for(x: Array, most: int = 1024) -> int:
    """The number of threads for a row of x (..., n) at 16 bytes per thread: whole warps, at most that many."""
    per_thread = 16 // x.dtype.itemsize
    return int(min(most, max(32, -(-x.shape[-1] // (32 * per_thread)) * 32)))
