"""Sums of two arrays on all threads: the residual stream, and gradients that meet."""

import numpy as np

from tensorgrad.backend.arrays import Array
from tensorgrad.backend.numpy.blocks import Blocks, alike

SMALL = 2**18  # elements: a single pass over fewer is done before another thread is awake


def add(y: Array, a: Array, b: Array) -> None:
    """y = a + b; y may be one of the two."""
    np.add(a, b, out=y)


class Elementwise(Blocks):
    """Large sums, for arrays of one shape."""

    def add(self, a: Array, b: Array) -> Array:
        """a + b, broadcast."""
        if getattr(a, "size", 0) < SMALL or getattr(b, "size", 0) < SMALL or not alike(a, b):
            return super().add(a, b)
        y = np.empty(a.shape, a.dtype)
        self._in_blocks(add, y, a, b)
        return y

    def add_to(self, y: Array, x: Array) -> None:
        """y += x, in place."""
        if y.size < SMALL or not alike(y, x):
            super().add_to(y, x)
        else:
            self._in_blocks(add, y, y, x)
