"""Cross-entropy of logits, one block per row."""

from typing import Any

import numpy as np

from tensorgrad.backend.arrays import Array
from tensorgrad.backend.cupy.kernels import Kernels, supported, threads_for, wide_dtype
from tensorgrad.backend.cupy.launcher import c_type


class CrossEntropy(Kernels):
    """The kernels of cross_entropy.cu."""

    logits_block = 2**26  # every block of rows adds to the head's whole gradient: fewer blocks, less traffic

    def cross_entropy(
        self, logits: Array, targets: Array, ignore_index: int, label_smoothing: float
    ) -> tuple[Array, Array]:
        if not supported(logits):
            return super().cross_entropy(logits, targets, ignore_index, label_smoothing)
        wide = wide_dtype(logits.dtype)
        losses, lse = self.xp.empty(len(logits), wide), self.xp.empty((len(logits), 2), wide)
        arrays = (self.contiguous(logits), self.indices(targets), losses, lse)
        self._start_cross_entropy("cross_entropy", logits, arrays, ignore_index, label_smoothing)
        return losses, lse

    def cross_entropy_backward(
        self, dlosses: Array, logits: Array, targets: Array, lse: Array, ignore_index: int, label_smoothing: float,
        out: Array | None = None,
    ) -> Array:  # fmt: skip
        if not supported(logits) or (out is not None and not out.flags.c_contiguous):
            return super().cross_entropy_backward(dlosses, logits, targets, lse, ignore_index, label_smoothing, out)
        whole, wide = self.contiguous(logits), wide_dtype(logits.dtype)
        dlogits = self.xp.empty(logits.shape, logits.dtype) if out is None else out
        if dlogits.data.ptr % 16 != whole.data.ptr % 16:  # the kernel needs arrays with the same misalignment
            whole = self.xp.array(whole)
        if dlogits.data.ptr % 16 != whole.data.ptr % 16:
            return super().cross_entropy_backward(dlosses, logits, targets, lse, ignore_index, label_smoothing, out)
        dlosses = self.contiguous(dlosses.astype(wide, copy=False))
        arrays = (dlosses, whole, self.indices(targets), self.contiguous(lse), dlogits)
        self._start_cross_entropy("cross_entropy_backward", logits, arrays, ignore_index, label_smoothing)
        return dlogits

    def _start_cross_entropy(
        self, kernel: str, logits: Array, arrays: tuple[Any, ...], ignore_index: int, smoothing: float
    ) -> None:
        rows, n = logits.shape
        targets = next(x for x in arrays if x.dtype.kind == "i")
        options = (np.int32(n), np.int64(ignore_index), wide_dtype(logits.dtype).type(smoothing))
        self.launcher.launch(
            "cross_entropy", kernel, (rows,), (threads_for(logits),), (*arrays, *options),
            defines={"T": c_type(logits.dtype), "I": "int" if targets.dtype.itemsize == 4 else "long long"},
        )  # fmt: skip
