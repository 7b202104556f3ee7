"""Matrix products: blocks of the right operand in panels, tiles of the result in registers, parts of it on threads.

The blocking is Goto and van de Geijn's (2008, "Anatomy of High-Performance Matrix Multiplication"), without the copy
of the left operand that BLAS makes: a tile reads its rows where they are.
"""

from typing import Any

import numpy as np
from numba import types

from tensorgrad.backend.arrays import Array
from tensorgrad.backend.numba.arrays import claimed
from tensorgrad.backend.numba.compile import apart, compiled, prange
from tensorgrad.backend.numba.linear import backward_reads_in_place, linear, reads_in_place, some_rows_backward
from tensorgrad.backend.numba.panels import aligned, fill_across, fill_panels
from tensorgrad.backend.numba.strided import array, packed_row, strided
from tensorgrad.backend.numba.tile import ROWS, n_lanes, tile, whole
from tensorgrad.backend.numpy import NumpyBackend

SMALL = 2**19  # multiplications in a product; below, waking the other threads costs more than they save
HEIGHT = 128  # rows of a block of the left operand, where it is copied
DEPTH = 384  # rows of a block of the right operand,
WIDTH = 384  # and its columns: half a megabyte of float32, which stays in the second-level cache


@compiled
def put(x: Any, y: Any, add: bool) -> None:
    """y = x, or y += x, for as many rows and columns as y has."""
    for i in range(y.shape[0]):
        row, own = x[i], packed_row(y[i])
        for j in range(own.size):
            own[j] = own[j] + row[j] if add else row[j]


@apart
def multiply(a: Any, b: Any, c: Any, bias: Any, add: bool) -> None:
    """c = a @ b, or c += a @ b with `add`, plus bias on every row unless it is empty; on one thread.

    a (m, k) and b (k, n) of any strides, c (m, n) with packed rows. A block of b is copied into panels once for all
    rows of a. Those are read as they lie; only rows that are not packed, or fewer than a tile has, are copied first.
    """
    m, n_inner = a.shape
    n, lanes = b.shape[1], n_lanes(c)
    depth, width, height = min(DEPTH, n_inner), min(WIDTH, whole(n, lanes)), min(HEIGHT, whole(m, ROWS))
    panels = aligned(width * (depth + 2), c).reshape(width // lanes, depth + 2, lanes)  # 2: or all begin in one set
    strips = aligned(height * (depth + 16), c).reshape(height, depth + 16)  # of the cache, which has room for 12
    edge = aligned(ROWS * lanes, c).reshape(ROWS, lanes)
    read = a.strides[1] == a.itemsize
    for left in range(0, n, WIDTH):
        right = min(left + WIDTH, n)
        for first in range(0, n_inner, DEPTH):
            last = min(first + DEPTH, n_inner)
            adds = add or first > 0
            fill_panels(b[first:last, left:right], panels)
            for top in range(0, m, ROWS):
                bottom = min(top + ROWS, m)
                rows = a[top:bottom, first:last]
                if not read and top % HEIGHT == 0:
                    fill_across(a[top : min(top + HEIGHT, m), first:last], strips)
                if read and bottom - top < ROWS:
                    fill_across(rows, strips)
                if not read or bottom - top < ROWS:
                    start = 0 if read else top % HEIGHT
                    rows = strips[start : start + ROWS, : last - first]
                for column in range(left, right, lanes):
                    p = (column - left) // lanes
                    if top + ROWS <= m and column + lanes <= n:
                        tile(rows, 0, 0, last - first, panels, p, c, top, column, adds)
                    else:
                        tile(rows, 0, 0, last - first, panels, p, edge, 0, 0, False)
                        put(edge, c[top:bottom, column : min(column + lanes, n)], adds)
                if bias.size > 0 and last == n_inner:
                    for i in range(top, bottom):
                        own = packed_row(c[i, left:right])
                        for j in range(own.size):
                            own[j] += bias[left + j]


@strided(lambda real: (array(real, 2),) * 3 + (array(real, 1), types.boolean, types.int64))
def product(a: Any, b: Any, c: Any, bias: Any, add: bool, parts: int) -> None:
    """`multiply`, with the longer side of c cut into equal parts: so rows mostly stay with the thread that made them.

    What is summed for an element does not depend on the parts: any number of threads gives the same bits.
    """
    m, n = c.shape
    lanes = n_lanes(c)
    n_panels, n_strips = whole(n, lanes) // lanes, whole(m, ROWS) // ROWS
    for part in prange(parts):
        if m > n:
            start, stop = n_strips * part // parts * ROWS, min(n_strips * (part + 1) // parts * ROWS, m)
            multiply(a[start:stop], b, c[start:stop], bias, add)
        else:
            start, stop = n_panels * part // parts * lanes, min(n_panels * (part + 1) // parts * lanes, n)
            multiply(a, b[:, start:stop], c[:, start:stop], bias[start:stop], add)


@strided(lambda real: (array(real, 3), array(real, 3), array(real, 3)))
def stacked_product(a: Any, b: Any, c: Any) -> None:
    """c[i] = a[i] @ b[i] for stacks of matrices (s, m, k), (s, k, n), (s, m, n)."""
    for i in prange(len(c)):
        multiply(a[i], b[i], c[i], c[0, 0, :0], False)


def writable(x: Array) -> Array:
    """x, copied if it is read-only or not aligned: kernels are compiled for arrays that are neither."""
    return x if x.flags.behaved else x.copy()


class Products(NumpyBackend):
    """Matrix products on the kernels' own threads, for float32 and float64."""

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
            product(writable(a), writable(b), c, c[0, :0], True, self.threads)

    def linear(self, x: Array, weight: Array, bias: Array | None) -> Array:
        """x (..., n) @ weight (m, n)^T + bias (m) -> (..., m)."""
        arrays = (x, weight) if bias is None else (x, weight, bias)
        if not self._takes(*arrays) or x.ndim < 2 or x.size * len(weight) < SMALL:
            return super().linear(x, weight, bias)
        bias = weight[:0, 0] if bias is None else bias
        rows = x.reshape(-1, x.shape[-1])
        if not reads_in_place(rows, weight):
            return self._rows_times_matrix(x, weight.T, bias)
        y = np.empty((*x.shape[:-1], len(weight)), x.dtype)
        linear(rows, weight, writable(bias), y.reshape(-1, len(weight)), self.threads)
        return y

    def linear_backward_x(self, dy: Array, weight: Array) -> Array:
        """dx = dy @ weight."""
        if not self._takes(dy, weight):
            return super().linear_backward_x(dy, weight)
        rows = dy.reshape(-1, dy.shape[-1])
        if not backward_reads_in_place(rows, weight):
            return super().linear_backward_x(dy, weight)
        dx = np.empty((*dy.shape[:-1], weight.shape[1]), dy.dtype)
        some_rows_backward(writable(rows), weight, dx.reshape(-1, weight.shape[1]), self.threads)
        return dx

    def _takes(self, *arrays: Array) -> bool:
        return claimed(*arrays) and 0 not in [x.size for x in arrays]

    def _rows_times_matrix(self, a: Array, b: Array, bias: Array) -> Array:
        y = np.empty((*a.shape[:-1], b.shape[-1]), a.dtype)
        rows = a.reshape(-1, a.shape[-1])
        y_rows = y.reshape(-1, b.shape[-1])
        product(writable(rows), writable(b), y_rows, writable(bias), False, self.threads)
        return y


def _stack(x: Array) -> Array:
    return writable(x.reshape(-1, *x.shape[-2:]))
