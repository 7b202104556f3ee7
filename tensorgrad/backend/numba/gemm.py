"""Matrix products inside compiled code: NumPy's own OpenBLAS on one thread a call, several calls side by side.

Products are split by hand over the threads that run all other kernels: two pools of threads on the same cores would
wait for each other.
"""

from typing import Any

import llvmlite.binding as llvm
import numpy as np
from numba import types
from numba.extending import overload

from tensorgrad.backend.base import Array
from tensorgrad.backend.blas import Blas
from tensorgrad.backend.numba.arrays import claimed
from tensorgrad.backend.numba.compile import prange
from tensorgrad.backend.numba.strided import address, array, strided
from tensorgrad.backend.numba.sums import dot
from tensorgrad.backend.numpy import NumpyBackend

SMALL = 2**19  # multiplications in a product; below, waking the other threads costs more than they save
FEW = 4  # rows: a product of so few is as fast as its weights can be read
ROW_MAJOR, AS_IS, TRANSPOSED = 101, 111, 112  # CBLAS's numbers for them


def _cblas_gemm(symbol: str, real: Any) -> Any:
    i32, i64, pointer = types.int32, types.int64, types.voidptr
    return types.ExternalFunction(
        symbol, types.void(i32, i32, i32, i64, i64, i64, real, pointer, i64, pointer, i64, real, pointer, i64)
    )


_sgemm = _cblas_gemm("tensorgrad_sgemm", types.float32)
_dgemm = _cblas_gemm("tensorgrad_dgemm", types.float64)


def connect(blas: Blas) -> None:
    """Give compiled code the addresses of the products, before any of it is loaded."""
    llvm.add_symbol("tensorgrad_sgemm", blas.sgemm)
    llvm.add_symbol("tensorgrad_dgemm", blas.dgemm)


def gemm(a: Array, b: Array, alpha: float, beta: float, c: Array) -> None:
    """c = alpha a @ b + beta c on one thread.

    a (m, k), b (k, n), c (m, n), all float32 or all float64. Elements next to each other in a row of c must be so in
    memory, and in a row or a column of a and of b.
    """
    product = alpha * (a @ b)
    c[...] = product if beta == 0 else product + beta * c


@overload(gemm)  # type: ignore[untyped-decorator]
def _gemm(a: Any, b: Any, alpha: Any, beta: Any, c: Any) -> Any:
    call, real = (_sgemm, np.float32) if c.dtype == types.float32 else (_dgemm, np.float64)

    def compiled(a: Any, b: Any, alpha: Any, beta: Any, c: Any) -> None:
        m, k = a.shape
        n, size = b.shape[1], c.itemsize
        order_a, order_b = AS_IS, AS_IS
        lda, ldb, ldc = a.strides[0] // size, b.strides[0] // size, c.strides[0] // size
        if a.strides[1] != size and k > 1:
            order_a, lda = TRANSPOSED, a.strides[1] // size
        if b.strides[1] != size and n > 1:
            order_b, ldb = TRANSPOSED, b.strides[1] // size
        # The distance between rows is checked even where there is one row and it means nothing.
        lda = max(lda, k if order_a == AS_IS else m)
        ldb = max(ldb, n if order_b == AS_IS else k)
        ldc = max(ldc, n)
        call(ROW_MAJOR, order_a, order_b, m, n, k, real(alpha), address(a), lda, address(b), ldb, real(beta),
             address(c), ldc)  # fmt: skip

    return compiled


@strided(lambda real: (array(real, 2), array(real, 2), array(real, 2), array(real, 1), types.float64, types.int64))
def product(a: Any, b: Any, c: Any, bias: Any, beta: float, parts: int) -> None:
    """c = a @ b + beta c, plus bias on every row unless it is empty; the longer side of c is cut into equal parts."""
    m, n = c.shape
    by_rows = m >= n
    length = m if by_rows else n
    for part in prange(parts):
        start, stop = length * part // parts, length * (part + 1) // parts
        own = c[start:stop] if by_rows else c[:, start:stop]
        gemm(a[start:stop] if by_rows else a, b if by_rows else b[:, start:stop], 1.0, beta, own)
        if bias.size > 0:
            own_bias = bias if by_rows else bias[start:stop]
            for i in range(own.shape[0]):
                for j in range(own.shape[1]):
                    own[i, j] += own_bias[j]


@strided(lambda real: (array(real, 2, "C"), array(real, 2, "C"), array(real, 1), array(real, 2, "C")))
def few_rows(x: Any, weight: Any, bias: Any, y: Any) -> None:
    """y = x @ weight^T, plus bias unless it is empty: every weight is read once, where gemm would copy all of it."""
    for j in prange(len(weight)):
        for i in range(len(x)):
            y[i, j] = dot(x[i], weight[j])
            if bias.size > 0:
                y[i, j] += bias[j]


@strided(lambda real: (array(real, 3), array(real, 3), array(real, 3)))
def stacked_product(a: Any, b: Any, c: Any) -> None:
    """c[i] = a[i] @ b[i] for stacks of matrices (s, m, k), (s, k, n), (s, m, n)."""
    for i in prange(len(c)):
        gemm(a[i], b[i], 1.0, 0.0, c[i])


def packed(x: Array) -> bool:
    """Whether rows or columns of the matrices in x (..., m, n) lie together in memory, so that gemm can read them."""
    m, n = x.shape[-2:]
    down, right = x.strides[-2:]
    size = x.itemsize
    rows = right == size and (m == 1 or down >= n * size)
    columns = down == size and (n == 1 or right >= m * size)
    return bool((rows or columns) and down % size == 0 and right % size == 0)


def readable(x: Array) -> Array:
    """x, copied if gemm could not read it as it is, or it is read-only: kernels are compiled for writable arrays."""
    return x if x.flags.writeable and packed(x) else x.copy()


class Products(NumpyBackend):
    """Matrix products on the kernels' own threads, for float32 and float64."""

    blas: Blas | None = None  # None: NumPy's products are all there is

    def matmul(self, a: Array, b: Array) -> Array:
        """a (..., m, n) @ b (..., n, p) -> (..., m, p)."""
        if not self._takes(a, b) or a.ndim < 2 or b.ndim < 2 or a.size * b.shape[-1] < SMALL:
            return super().matmul(a, b)
        if b.ndim == 2:
            return self._rows_times_matrix(a, b, b[:0, 0])
        if a.ndim != b.ndim or a.shape[:-2] != b.shape[:-2]:
            return super().matmul(a, b)
        y = np.empty((*a.shape[:-1], b.shape[-1]), a.dtype)
        stacked_product(_stack(a), _stack(b), _stack(y))
        return y

    def add_matmul(self, c: Array, a: Array, b: Array) -> None:
        """c += a @ b, in place, for matrices."""
        if not self._takes(a, b, c) or not c.flags.carray:
            super().add_matmul(c, a, b)
        else:
            product(readable(a), readable(b), c, c[:0, 0], 1.0, self.threads)

    def linear(self, x: Array, weight: Array, bias: Array | None) -> Array:
        """x (..., n) @ weight (m, n)^T + bias (m) -> (..., m)."""
        arrays = (x, weight) if bias is None else (x, weight, bias)
        if not self._takes(*arrays) or x.ndim < 2 or x.size * len(weight) < SMALL:
            return super().linear(x, weight, bias)
        bias = weight[:0, 0] if bias is None else bias
        if x.size > FEW * x.shape[-1] or not x.flags.carray or not weight.flags.carray:
            return self._rows_times_matrix(x, weight.T, bias)
        y = np.empty((*x.shape[:-1], len(weight)), x.dtype)
        few_rows(x.reshape(-1, x.shape[-1]), weight, bias, y.reshape(-1, len(weight)))
        return y

    def _takes(self, *arrays: Array) -> bool:
        return self.blas is not None and claimed(*arrays) and all(x.size for x in arrays)

    def _rows_times_matrix(self, a: Array, b: Array, bias: Array) -> Array:
        y = np.empty((*a.shape[:-1], b.shape[-1]), a.dtype)
        rows = a.reshape(-1, a.shape[-1])
        bias = bias if bias.flags.writeable else bias.copy()
        product(readable(rows), readable(b), y.reshape(-1, b.shape[-1]), bias, 0.0, self.threads)
        return y


def _stack(x: Array) -> Array:
    return readable(x.reshape(-1, *x.shape[-2:]))
