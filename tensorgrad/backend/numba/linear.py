"""Matrix products and linear layers, on the kernels' own threads, or by NumPy's library where that is faster."""

from collections.abc import Iterable

import numpy as np

from tensorgrad.backend.arrays import Array
from tensorgrad.backend.numba.arrays import contiguous, is_supported
from tensorgrad.backend.numba.linear_skinny import reads_in_place, skinny_linear
from tensorgrad.backend.numba.macrokernel import MIN_PARALLEL_MULTIPLICATIONS, batched_product, parallel_product
from tensorgrad.backend.numba.product_choice import KINDS, faster_by_numpy, forced, kind_of
from tensorgrad.backend.numpy import NumpyBackend


def writable(x: Array) -> Array:
    """x, copied if it is read-only or not aligned, which kernels are not compiled for."""
    return x if x.flags.behaved else x.copy()


class Linear(NumpyBackend):
    """Matrix products on the kernels' own threads, for float32 and float64.

    Large ones are left to NumPy's library if they are of a kind that it computes faster: see product_choice.py.
    """

    _numpy_products: frozenset[str] | None = None  # their kinds; None until they are known

    def numpy_products(self) -> frozenset[str]:
        if self._numpy_products is None:
            self._numpy_products = forced()
        if self._numpy_products is None:
            ours, numpys = type(self)(), type(self)()
            ours._numpy_products, numpys._numpy_products = frozenset(), frozenset(KINDS)
            self._numpy_products = faster_by_numpy(ours, numpys)
        return self._numpy_products

    def leave_products(self, kinds: Iterable[str] | None) -> None:
        by_variable, given = forced(), None if kinds is None else frozenset(kinds)
        self._numpy_products = given if by_variable is None else by_variable

    def _is_left(self, a: Array, b: Array) -> bool:
        """Whether a @ b is left to NumPy's library, for a (..., m, k) and b (k, n)."""
        if self._numpy_products is not None and not self._numpy_products:  # as on most processors: no cost
            return False
        kind = kind_of(a, b)
        return kind is not None and kind in self.numpy_products()

    def matmul(self, a: Array, b: Array) -> Array:
        """a (..., m, n) @ b (..., n, p) -> (..., m, p)."""
        if not self._supports(a, b) or a.ndim < 2 or b.ndim < 2 or a.size * b.shape[-1] < MIN_PARALLEL_MULTIPLICATIONS:
            return super().matmul(a, b)
        if b.ndim == 2:
            return super().matmul(a, b) if self._is_left(a, b) else self._rows_times_matrix(a, b, b[:0, 0])
        if a.ndim != b.ndim or a.shape[:-2] != b.shape[:-2]:
            return super().matmul(a, b)
        y = np.empty((*a.shape[:-1], b.shape[-1]), a.dtype)
        batched_product(_stack(a), _stack(b), _stack(y))
        return y

    def add_matmul(self, c: Array, a: Array, b: Array) -> None:
        """c += a @ b, in place, for matrices."""
        if not self._supports(a, b, c) or not c.flags.carray:
            super().add_matmul(c, a, b)
        else:
            parallel_product(writable(a), writable(b), c, c[0, :0], True, self.threads)

    def linear(self, x: Array, weight: Array, bias: Array | None) -> Array:
        """x (..., n) @ weight (m, n)^T + bias (m) -> (..., m)."""
        arrays = (x, weight) if bias is None else (x, weight, bias)
        if not self._supports(*arrays) or x.ndim < 2 or x.size * len(weight) < MIN_PARALLEL_MULTIPLICATIONS:
            return super().linear(x, weight, bias)
        if self._is_left(x, weight.T):
            return super().linear(x, weight, bias)  # by `matmul`
        bias = weight[:0, 0] if bias is None else bias
        rows = x.reshape(-1, x.shape[-1])
        if not reads_in_place(rows, weight):
            return self._rows_times_matrix(x, weight.T, bias)
        y = np.empty((*x.shape[:-1], len(weight)), x.dtype)
        skinny_linear(rows, weight, writable(bias), y.reshape(-1, len(weight)), self.threads)
        return y

    def _supports(self, *arrays: Array) -> bool:
        return is_supported(*arrays) and 0 not in [x.size for x in arrays]

    def _rows_times_matrix(self, a: Array, b: Array, bias: Array) -> Array:
        y = np.empty((*a.shape[:-1], b.shape[-1]), a.dtype)
        rows = a.reshape(-1, a.shape[-1])
        y_rows = y.reshape(-1, b.shape[-1])
        parallel_product(writable(rows), writable(b), y_rows, contiguous(bias), False, self.threads)
        return y


def _stack(x: Array) -> Array:
    return writable(x.reshape(-1, *x.shape[-2:]))
