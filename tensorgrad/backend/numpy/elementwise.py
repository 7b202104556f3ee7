"""Sums of two arrays on all threads, for the residual stream and for gradients that are added up."""

import numpy as np

from tensorgrad.backend.arrays import Array
from tensorgrad.backend.numpy.blocks import Blocks, same_layout

MIN_ADD_ELEMENTS = 2**18  # fewer are added before another thread is awake


def add(y: Array, a: Array, b: Array) -> None:
    """y = a + b; y may be a or b."""
    np.add(a, b, out=y)


class Elementwise(Blocks):
    """Sums of large arrays of one shape."""

    def add(self, a: Array, b: Array) -> Array:
        large = getattr(a, "size", 0) >= MIN_ADD_ELEMENTS and getattr(b, "size", 0) >= MIN_ADD_ELEMENTS
        if not large or not same_layout(a, b):
            return super().add(a, b)
        y = np.empty(a.shape, a.dtype)
        self._in_blocks(add, y, a, b)
        return y

    def add_to(self, y: Array, x: Array) -> None:
        if y.size < MIN_ADD_ELEMENTS or not same_layout(y, x):
            super().add_to(y, x)
        else:
            self._in_blocks(add, y, y, x)
