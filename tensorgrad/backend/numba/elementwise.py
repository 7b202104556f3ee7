"""Addition on all threads: for residual connections, and for the accumulation of gradients."""

from typing import Any

import numpy as np

from tensorgrad.backend.arrays import Array
from tensorgrad.backend.numba.arrays import block_of, is_supported, n_blocks
from tensorgrad.backend.numba.parallel import ALONE, MIN_PARALLEL_ELEMENTS, kernel, prange
from tensorgrad.backend.numpy import NumpyBackend


@kernel
def add(a: Any, b: Any, y: Any, thread: Any = ALONE) -> None:
    """y = a + b; y may be one of the two."""
    for block in prange(n_blocks(a), thread):
        ab, bb, yb = block_of(a, block), block_of(b, block), block_of(y, block)
        for i in range(ab.size):
            yb[i] = ab[i] + bb[i]


def supports(a: Array, b: Array) -> bool:
    """Whether the kernel supports these: large, contiguous, one shape and dtype. NumPy is as fast for others."""
    if getattr(a, "size", 0) < MIN_PARALLEL_ELEMENTS or not is_supported(a, b):
        return False
    return bool(a.shape == b.shape and a.flags.carray and b.flags.carray)


class Elementwise(NumpyBackend):
    """The kernel above, for float32 and float64."""

    def add(self, a: Array, b: Array) -> Array:
        """a + b, broadcast."""
        if not supports(a, b):
            return super().add(a, b)
        y = np.empty(a.shape, a.dtype)
        add(a.reshape(-1), b.reshape(-1), y.reshape(-1))
        return y

    def add_to(self, y: Array, x: Array) -> None:
        """y += x, in place."""
        if supports(y, x):
            add(y.reshape(-1), x.reshape(-1), y.reshape(-1))
        else:
            super().add_to(y, x)
