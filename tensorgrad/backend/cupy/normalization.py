"""Layer normalization and RMS normalization: one warp per row."""

from functools import cached_property
from typing import Any

import numpy as np

from tensorgrad.backend.arrays import Array, as_rows

from tensorgrad.backend.cupy.kernels import (  # isort: skip
    THREADS, WARPS, Kernels, blocks_of_rows, columns_per_lane, n_rows, supported, wide_dtype,
)  # fmt: skip
from tensorgrad.backend.cupy.launcher import c_type

ROW_BYTES = 1536  # of the longest row that a warp keeps in its registers: three accesses of 16 bytes by every lane
SHARED_BYTES = 64 << 10  # of a block, for the sums of its warps: what every GPU since Turing has


def has_kernel(x: Array, like_x: Array | None = None, per_row: tuple[Array, ...] = (), *vectors: Array | None) -> bool:
    """Whether kernels support x (..., n), an array of its shape, arrays of one number per row, and vectors (n)."""
    given = [v for v in vectors if v is not None]
    return (
        supported(x, like_x)
        and (like_x is None or like_x.shape == x.shape)
        and all(stat.size == n_rows(x) and stat.dtype == wide_dtype(x.dtype) for stat in per_row)
        and all(v.shape == x.shape[-1:] for v in given)
        and (not given or (supported(*given) and given[0].dtype in (x.dtype, wide_dtype(x.dtype))))
    )


def defines(x: Array, *vectors: Array | None) -> dict[str, str]:
    """The dtypes that the kernels are compiled for, and the length of rows that they keep in registers, or 0."""
    given, n = [v.dtype for v in vectors if v is not None], x.shape[-1]
    kept = n * x.itemsize <= ROW_BYTES and n % (32 * (16 // x.itemsize)) == 0
    return {"T": c_type(x.dtype), "W": c_type(given[0] if given else x.dtype), "COLUMNS": str(n if kept else 0)}


class Normalization(Kernels):
    """The kernels of normalization.cu; its partial sums are added by linear.cu."""

    @cached_property
    def min_recompute_bytes(self) -> int:  # type: ignore[override]
        """A 256th of the GPU's memory: what is smaller is kept, and not computed once more in backward."""
        return int(self.xp.cuda.runtime.memGetInfo()[1]) // 256

    def layer_norm(self, x: Array, weight: Array | None, bias: Array | None, eps: float) -> tuple[Array, Array, Array]:
        if not has_kernel(x, None, (), weight, bias):
            return super().layer_norm(x, weight, bias, eps)
        return self._normalize("layer_norm", 2, x, None, None, eps, weight, bias)

    def add_layer_norm(
        self, x: Array, residual: Array, weight: Array | None, bias: Array | None, eps: float
    ) -> tuple[Array, Array, Array, Array]:
        """x + residual, and layer_norm of that, in one pass."""
        if not has_kernel(x, residual, (), weight, bias):
            return super().add_layer_norm(x, residual, weight, bias, eps)
        total = self.xp.empty(x.shape, x.dtype)
        return total, *self._normalize("layer_norm", 2, x, residual, total, eps, weight, bias)

    def layer_norm_backward(
        self, dy: Array, x: Array, weight: Array | None, mean: Array, rstd: Array, dsum: Array | None,
        needs: tuple[bool, ...],
    ) -> tuple[Array | None, Array | None, Array | None]:  # fmt: skip
        """dx plus dsum, dweight and dbias, in one pass over dy and x; one kernel each where few are needed."""
        n, wide = x.shape[-1], wide_dtype(x.dtype)
        read = 32 * (16 // x.itemsize)  # by a warp at once
        width = -(-n // read) * read
        warps = min(WARPS, SHARED_BYTES // (2 * width * wide.itemsize))  # each has its own sums in shared memory
        has_kernels = has_kernel(x, dy, (mean, rstd), weight) and has_kernel(x, dsum)
        if not (has_kernels and warps and needs[0] and any(needs[1:])):
            return super().layer_norm_backward(dy, x, weight, mean, rstd, dsum, needs)
        blocks, rows_per_block = blocks_of_rows(n_rows(x))
        dx, partial = self.xp.empty(x.shape, x.dtype), self.xp.empty((blocks, 2 * n), wide)
        self.launcher.launch(
            "normalization", "layer_norm_backward", (blocks,), (32 * warps,),
            (*map(self.contiguous, (dy, x, weight, mean, rstd, dsum)), dx, partial, np.int64(n_rows(x)),
             np.int32(rows_per_block), np.int32(n), np.int32(width)), shared=warps * 2 * width * wide.itemsize,
            defines=defines(x, weight),
        )  # fmt: skip
        sums = self.column_sums(partial, wide)
        return dx, sums[:n] if needs[1] else None, sums[n:] if needs[2] else None

    def layer_norm_backward_x(
        self, dy: Array, x: Array, weight: Array | None, mean: Array, rstd: Array, dsum: Array | None = None
    ) -> Array:
        if not has_kernel(x, dy, (mean, rstd), weight) or not has_kernel(x, dsum):
            return super().layer_norm_backward_x(dy, x, weight, mean, rstd, dsum)
        dx = self.xp.empty(x.shape, x.dtype)
        arrays = (*map(self.contiguous, (dy, x, weight, mean, rstd, dsum)), dx)
        self._start_rows("layer_norm_backward_x", x, arrays, defines(x, weight))
        return dx

    def layer_norm_backward_weight(self, dy: Array, x: Array, mean: Array, rstd: Array) -> Array:
        if not has_kernel(x, dy, (mean, rstd)):
            return super().layer_norm_backward_weight(dy, x, mean, rstd)
        return self._weight_sums(dy, x, self.contiguous(mean), rstd)

    def rms_norm(self, x: Array, weight: Array | None, eps: float) -> tuple[Array, Array]:
        if not has_kernel(x, None, (), weight):
            return super().rms_norm(x, weight, eps)
        return self._normalize("rms_norm", 1, x, None, None, eps, weight)

    def add_rms_norm(self, x: Array, residual: Array, weight: Array | None, eps: float) -> tuple[Array, Array, Array]:
        """x + residual, and rms_norm of that, in one pass."""
        if not has_kernel(x, residual, (), weight):
            return super().add_rms_norm(x, residual, weight, eps)
        total = self.xp.empty(x.shape, x.dtype)
        return total, *self._normalize("rms_norm", 1, x, residual, total, eps, weight)

    def rms_norm_backward_x(
        self, dy: Array, x: Array, weight: Array | None, rrms: Array, dsum: Array | None = None
    ) -> Array:
        if not has_kernel(x, dy, (rrms,), weight) or not has_kernel(x, dsum):
            return super().rms_norm_backward_x(dy, x, weight, rrms, dsum)
        dx = self.xp.empty(x.shape, x.dtype)
        arrays = (*map(self.contiguous, (dy, x, weight, rrms, dsum)), dx)
        self._start_rows("rms_norm_backward_x", x, arrays, defines(x, weight))
        return dx

    def rms_norm_backward_weight(self, dy: Array, x: Array, rrms: Array) -> Array:
        if not has_kernel(x, dy, (rrms,)):
            return super().rms_norm_backward_weight(dy, x, rrms)
        return self._weight_sums(dy, x, None, rrms)

    def _normalize(
        self, kernel: str, n_stats: int, x: Array, residual: Array | None, total: Array | None, eps: float,
        *vectors: Array | None,
    ) -> tuple[Any, ...]:  # fmt: skip
        """y, and n_stats numbers for every row; with a residual, x + residual is written to total."""
        wide = wide_dtype(x.dtype)
        y, stats = self.xp.empty(x.shape, x.dtype), [self.xp.empty((*x.shape[:-1], 1), wide) for _ in range(n_stats)]
        arrays = (*map(self.contiguous, (x, residual, total, *vectors)), y, *stats)
        self._start_rows(kernel, x, arrays, defines(x, *vectors), wide.type(eps))
        return y, *stats

    def _start_rows(self, kernel: str, x: Array, arrays: tuple[Any, ...], types: dict[str, str], *options: Any) -> None:
        """Launch a kernel with a warp for every row of x."""
        rows = n_rows(x)
        self.launcher.launch(
            "normalization", kernel, (-(-rows // WARPS),), (THREADS,),
            (*arrays, np.int64(rows), np.int32(x.shape[-1]), *options), defines=types,
        )  # fmt: skip

    def _weight_sums(self, dy: Array, x: Array, mean: Array | None, rstd: Array) -> Array:
        """The sum of dy (x - mean) rstd over all rows: over blocks of rows first, then over the blocks."""
        dy, x = as_rows(self.contiguous(dy)), as_rows(self.contiguous(x))
        (rows, n), wide = x.shape, wide_dtype(x.dtype)
        blocks, rows_per_block = blocks_of_rows(rows)
        partial, per_lane = self.xp.empty((blocks, n), wide), columns_per_lane(n, dy, x)
        self.launcher.launch(
            "normalization", "layer_norm_backward_weight", (-(-n // (32 * per_lane)), blocks), (THREADS,),
            (dy, x, mean, self.contiguous(rstd), partial, np.int64(rows), np.int32(rows_per_block), np.int32(n),
             np.int32(per_lane)), defines=defines(x),
        )  # fmt: skip
        return self.column_sums(partial, wide)
