"""Dropout; its random bits are computed in the kernel, so that no mask is written to memory."""

import numpy as np

from tensorgrad.backend.arrays import Array
from tensorgrad.backend.arrays import Dropout as DropoutOptions
from tensorgrad.backend.cupy.kernels import THREADS, Kernels, supported, wide_dtype
from tensorgrad.backend.cupy.launcher import c_type


class Dropout(Kernels):
    """The kernels of dropout.cu.

    step_offset: a uint32 on the device that is added to the step of every Philox counter, or None. A CUDA graph, which
    is recorded once and run many times, gets new masks when it is increased.
    """

    step_offset: Array | None = None

    def random_bits(self, n: int, seed: int, stream: int, step: int) -> Array:
        words = self.xp.empty(n, np.uint32)
        if n:
            self.launcher.launch(
                "dropout", "random_bits", (-(-n // (4 * THREADS)),), (THREADS,),
                (words, np.int64(n), *self._stream(seed, stream, step)), defines={"T": "float"},
            )  # fmt: skip
        return words

    def dropout(self, x: Array, dropout: DropoutOptions) -> Array:
        if not supported(x):
            return super().dropout(x, dropout)
        p, seed, stream, step = dropout
        scale = x.dtype.type(1 / (1 - p) if p < 1 else 0.0)  # rounded like in `math.py`
        y, per_thread = self.xp.empty(x.shape, x.dtype), max(4, 16 // x.dtype.itemsize)
        self.launcher.launch(
            "dropout", "dropout", (-(-x.size // (per_thread * THREADS)),), (THREADS,),
            (self.contiguous(x), y, np.int64(x.size), np.uint32(min(round(p * 2**32), 2**32 - 1)),
             wide_dtype(x.dtype).type(scale), *self._stream(seed, stream, step)), defines={"T": c_type(x.dtype)},
        )  # fmt: skip
        return y

    def _stream(self, seed: int, stream: int, step: int) -> tuple[np.uint64, np.uint32, np.uint32, Array | None]:
        return np.uint64(seed), np.uint32(stream & 0xFFFFFFFF), np.uint32(step & 0xFFFFFFFF), self.step_offset
