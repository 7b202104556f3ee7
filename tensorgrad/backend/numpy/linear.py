"""Matrix products: parts of the result, each with one call to NumPy's BLAS on one thread."""

import math
from collections.abc import Callable

import numpy as np

from tensorgrad.backend import blas
from tensorgrad.backend.arrays import Array, as_rows, is_half
from tensorgrad.backend.numpy.blocks import Blocks, cut

SMALL = 2**22  # multiplications in a part; below, waking another thread costs more than it saves
AHEAD = 2**22  # multiplications that the caller is through with when the other threads are awake
FEW = 4  # rows: such a product is as fast as its weights are read, and over too soon for another thread to wake up,
LARGE_OF_FEW = 2**19  # which OpenBLAS's own, awake from the product before, need not; elements of the weights
LARGE = 2**21  # elements of a part of a product that is only made to be added


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
    """Products by a matrix and of stacks, and sums over all rows, where all is of one dtype."""

    def matmul(self, a: Array, b: Array) -> Array:
        """a (..., m, n) @ b (..., n, p) -> (..., m, p)."""
        if b.ndim == 2 and b.size >= LARGE_OF_FEW and a.size <= FEW * a.shape[-1]:
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
            self._on_all_threads(product, [(y[part], a[part], b[part]) for part in cut(len(y), n_parts)])
        else:
            self._multiply(product, as_rows(y), as_rows(a), b, n_parts)
        return y

    def add_matmul(self, c: Array, a: Array, b: Array) -> None:
        """c += a @ b, in place, for matrices: no more of the product is there at a time than is being added."""
        n_parts = self._n_parts(a, b)
        if n_parts < 2 or c.dtype != a.dtype:
            super().add_matmul(c, a, b)
        else:
            self._multiply(add_product, c, a, b, max(n_parts, math.ceil(c.size / LARGE)))

    def linear_backward_bias(self, dy: Array) -> Array:
        """dbias = the sum of dy over all rows; at least float32."""
        if dy.size < LARGE // 8 or is_half(dy.dtype):
            return super().linear_backward_bias(dy)
        rows, dbias = as_rows(dy), np.empty(dy.shape[-1:], dy.dtype)
        self._on_all_threads(sum_of_rows, [(dbias[part], rows[:, part]) for part in cut(len(dbias), self.threads)])
        return dbias

    def _n_parts(self, a: Array, b: Array) -> int:
        """In how many parts a @ b is made; 1 where NumPy's BLAS is one that decides about its threads itself."""
        if a.ndim < 2 or b.ndim < 2 or a.dtype != b.dtype or is_half(a.dtype) or not blas.use_threads(1):
            return 1
        return min(self.threads, a.size * b.shape[-1] // SMALL)

    def _multiply(self, fn: Callable[..., None], y: Array, a: Array, b: Array, n_parts: int) -> None:
        """fn(y, a, b) for matrices, with the longer side of y in parts."""
        ahead = AHEAD // (a.shape[1] * min(y.shape))
        if len(y) >= y.shape[1]:
            parts = [(y[part], a[part], b) for part in cut(len(y), n_parts, ahead)]
        else:
            parts = [(y[:, part], a, b[:, part]) for part in cut(y.shape[1], n_parts, ahead)]
        self._on_all_threads(fn, parts)
