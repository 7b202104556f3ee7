"""Cross-entropy of logits, one block per row."""

from functools import cached_property
from typing import Any

import numpy as np

from tensorgrad.backend.arrays import Array
from tensorgrad.backend.cupy.kernels import Kernels, has_rows, row_stride, supported, threads_for, wide_dtype
from tensorgrad.backend.cupy.launcher import c_type

MAX_THREADS = 512  # of a block: four of them share a multiprocessor, and some read while others add up their threads


class CrossEntropy(Kernels):
    """The kernels of cross_entropy.cu."""

    @cached_property
    def logits_block(self) -> int:  # type: ignore[override]
        """The largest power of two that takes 1/64 of the GPU's memory in half precision.

        Every block of rows adds to the head's whole gradient: fewer blocks, less traffic.
        """
        total = self.xp.cuda.runtime.memGetInfo()[1]
        return 1 << (int(total) // 128).bit_length() - 1

    def cross_entropy(
        self, logits: Array, targets: Array, ignore_index: int, label_smoothing: float
    ) -> tuple[Array, Array]:
        if not supported(logits):
            return super().cross_entropy(logits, targets, ignore_index, label_smoothing)
        wide = wide_dtype(logits.dtype)
        losses, lse = self.xp.empty(len(logits), wide), self.xp.empty((len(logits), 2), wide)
        logits = self.with_rows(logits)
        arrays = (logits, row_stride(logits), self.indices(targets), losses, lse)
        self._start_cross_entropy("cross_entropy", logits, arrays, ignore_index, label_smoothing)
        return losses, lse

    def cross_entropy_backward(
        self, dlosses: Array, logits: Array, targets: Array, lse: Array, ignore_index: int, label_smoothing: float,
        out: Array | None = None,
    ) -> Array:  # fmt: skip
        if not supported(logits) or (out is not None and not has_rows(out)):
            return super().cross_entropy_backward(dlosses, logits, targets, lse, ignore_index, label_smoothing, out)
        rows, wide = self.with_rows(logits), wide_dtype(logits.dtype)
        dlogits = self.aligned_rows(rows.shape, rows.dtype, padded=not rows.flags.c_contiguous) if out is None else out
        if not aligned_alike(rows, dlogits):
            rows = self.xp.array(rows)
        if not aligned_alike(rows, dlogits):
            return super().cross_entropy_backward(dlosses, logits, targets, lse, ignore_index, label_smoothing, out)
        dlosses = self.contiguous(dlosses.astype(wide, copy=False))
        arrays = (
            dlosses, rows, row_stride(rows), self.indices(targets), self.contiguous(lse), dlogits, row_stride(dlogits),
        )  # fmt: skip
        self._start_cross_entropy("cross_entropy_backward", rows, arrays, ignore_index, label_smoothing)
        return dlogits

    def _start_cross_entropy(
        self, kernel: str, logits: Array, arrays: tuple[Any, ...], ignore_index: int, smoothing: float
    ) -> None:
        rows, n = logits.shape
        targets = next(x for x in arrays if x.dtype.kind == "i" and x.shape)
        options = (np.int32(n), np.int64(ignore_index), wide_dtype(logits.dtype).type(smoothing))
        self.launcher.launch(
            "cross_entropy", kernel, (rows,), (threads_for(logits, MAX_THREADS),), (*arrays, *options),
            defines={"T": c_type(logits.dtype), "I": "int" if targets.dtype.itemsize == 4 else "long long"},
        )  # fmt: skip


def aligned_alike(x: Array, y: Array) -> bool:
    """Whether every row of x has the same misalignment to 16 bytes as that of y, as the kernel needs."""
    return (x.data.ptr - y.data.ptr) % 16 == 0 and (x.strides[0] - y.strides[0]) % 16 == 0
