"""Matrix products: the result is split into parts, each computed by one call to NumPy's BLAS on one thread."""

import math
from collections.abc import Callable

import numpy as np

from tensorgrad.backend import blas
from tensorgrad.backend.arrays import Array, as_rows, is_half
from tensorgrad.backend.numpy.blocks import Blocks, split

MIN_PART_MULTIPLICATIONS = 2**22  # in smaller parts, waking another thread costs more than it saves
HEAD_START_MULTIPLICATIONS = 2**22  # the calling thread does about so many before the other threads are awake
# A skinny product takes as long as reading its weights, which is over before a thread of `team` has woken up. It is
# left to OpenBLAS's own threads, which are still awake from the product before.
MAX_SKINNY_ROWS = 4
MIN_SKINNY_WEIGHTS = 2**19  # elements
MAX_ADDED_ELEMENTS = 2**21  # of one part of a product that is computed only to be added to an array
MIN_PARALLEL_SUM_ELEMENTS = 2**18


def product(y: Array, a: Array, b: Array) -> None:
    """y = a @ b."""
    np.matmul(a, b, out=y)


def add_product(y: Array, a: Array, b: Array) -> None:
    """y += a @ b."""
    y += np.matmul(a, b)


def sum_of_rows(y: Array, x: Array) -> None:
    """y (n) = the sum of x (rows, n) over the rows."""
    np.sum(x, axis=0, out=y)


class Linear(Blocks):
    """Products of matrices and of stacks of matrices, and sums over all rows, of arrays of one dtype."""

    def matmul(self, a: Array, b: Array) -> Array:
        if b.ndim == 2 and b.size >= MIN_SKINNY_WEIGHTS and a.size <= MAX_SKINNY_ROWS * a.shape[-1]:
            blas.use_threads(self.threads)
            try:
                return super().matmul(a, b)
            finally:
                blas.use_threads(1)
        n_parts = self._n_parts(a, b)
        stacks = b.ndim > 2 and a.ndim > 2 and a.shape[:-2] == b.shape[:-2]
        if n_parts < 2 or not (b.ndim == 2 or stacks):
            return super().matmul(a, b)
        y = np.empty((*a.shape[:-1], b.shape[-1]), a.dtype)
        if stacks:
            self._on_all_threads(product, [(y[part], a[part], b[part]) for part in split(len(y), n_parts)])
        else:
            self._multiply(product, as_rows(y), as_rows(a), b, n_parts)
        return y

    def add_matmul(self, c: Array, a: Array, b: Array) -> None:
        """c += a @ b, in place, for matrices; only the parts that are being added are in memory at a time."""
        n_parts = self._n_parts(a, b)
        if n_parts < 2 or c.dtype != a.dtype:
            super().add_matmul(c, a, b)
        else:
            self._multiply(add_product, c, a, b, max(n_parts, math.ceil(c.size / MAX_ADDED_ELEMENTS)))

    def linear_backward_bias(self, dy: Array) -> Array:
        if dy.size < MIN_PARALLEL_SUM_ELEMENTS or is_half(dy.dtype):
            return super().linear_backward_bias(dy)
        rows, dbias = as_rows(dy), np.empty(dy.shape[-1:], dy.dtype)
        self._on_all_threads(sum_of_rows, [(dbias[part], rows[:, part]) for part in split(len(dbias), self.threads)])
        return dbias

    def _n_parts(self, a: Array, b: Array) -> int:
        """The number of parts to compute a @ b in; 1 where NumPy's BLAS manages its threads itself."""
        if a.ndim < 2 or b.ndim < 2 or a.dtype != b.dtype or is_half(a.dtype) or not blas.use_threads(1):
            return 1
        return min(self.threads, a.size * b.shape[-1] // MIN_PART_MULTIPLICATIONS)

    def _multiply(self, fn: Callable[..., None], y: Array, a: Array, b: Array, n_parts: int) -> None:
        """fn(y, a, b) for matrices, with the longer side of y split into parts."""
        head_start = HEAD_START_MULTIPLICATIONS // (a.shape[1] * min(y.shape))
        if len(y) >= y.shape[1]:
            parts = [(y[part], a[part], b) for part in split(len(y), n_parts, head_start)]
        else:
            parts = [(y[:, part], a, b[:, part]) for part in split(y.shape[1], n_parts, head_start)]
        self._on_all_threads(fn, parts)
