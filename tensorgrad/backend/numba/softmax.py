"""Softmax and log-softmax over the last axis, a row at a time: read from memory once and then from the cache."""

from collections.abc import Callable
from typing import Any

import numpy as np

from tensorgrad.backend.arrays import Array
from tensorgrad.backend.numba.arrays import is_supported, rows
from tensorgrad.backend.numba.mathematics import ONE, exp
from tensorgrad.backend.numba.parallel import ALONE, kernel, prange
from tensorgrad.backend.numba.reductions import dot, largest, total
from tensorgrad.backend.numpy import NumpyBackend


@kernel
def softmax(x: Any, y: Any, thread: Any = ALONE) -> None:
    """y = exp(x - max x) / sum."""
    for i in prange(x.shape[0], thread):
        xi, yi = x[i], y[i]
        top = largest(xi)
        for j in range(xi.size):
            yi[j] = exp(xi[j] - top)
        scale = ONE / total(yi)
        for j in range(xi.size):
            yi[j] *= scale


@kernel
def softmax_backward(dy: Any, y: Any, dx: Any, thread: Any = ALONE) -> None:
    """dx = y (dy - sum(y dy))."""
    for i in prange(y.shape[0], thread):
        dyi, yi, dxi = dy[i], y[i], dx[i]
        common = dot(yi, dyi)
        for j in range(yi.size):
            dxi[j] = yi[j] * (dyi[j] - common)


@kernel
def log_softmax(x: Any, y: Any, thread: Any = ALONE) -> None:
    """y = x - max x - log(sum exp(x - max x))."""
    for i in prange(x.shape[0], thread):
        xi, yi = x[i], y[i]
        top = largest(xi)
        for j in range(xi.size):
            yi[j] = exp(xi[j] - top)
        log_total = np.log(total(yi))
        for j in range(xi.size):
            yi[j] = xi[j] - top - log_total


@kernel
def log_softmax_backward(dy: Any, y: Any, dx: Any, thread: Any = ALONE) -> None:
    """dx = dy - exp(y) sum(dy)."""
    for i in prange(y.shape[0], thread):
        dyi, yi, dxi = dy[i], y[i], dx[i]
        common = total(dyi)
        for j in range(yi.size):
            dxi[j] = dyi[j] - exp(yi[j]) * common


def row_wise(kernel: Callable[..., None], plain: Callable[..., Array], axis: int, *arrays: Array) -> Array:
    """Apply a kernel to the rows of arrays of one shape; use `plain` if it does not support the axis or the arrays."""
    first = arrays[0]
    is_last = axis in (-1, first.ndim - 1) and first.size > 0
    if not is_last or not is_supported(*arrays) or any(x.shape != first.shape for x in arrays):
        return plain(*arrays, axis)
    y = np.empty(first.shape, first.dtype)
    kernel(*(rows(x) for x in arrays), rows(y))
    return y


class Softmax(NumpyBackend):
    """The kernels above, for float32 and float64 and the last axis."""

    def softmax(self, x: Array, axis: int) -> Array:
        """exp(x) / sum exp(x)."""
        return row_wise(softmax, super().softmax, axis, x)

    def softmax_backward(self, dy: Array, y: Array, axis: int) -> Array:
        """dx of softmax."""
        return row_wise(softmax_backward, super().softmax_backward, axis, dy, y)

    def log_softmax(self, x: Array, axis: int) -> Array:
        """x - logsumexp(x)."""
        return row_wise(log_softmax, super().log_softmax, axis, x)

    def log_softmax_backward(self, dy: Array, y: Array, axis: int) -> Array:
        """dx of log_softmax."""
        return row_wise(log_softmax_backward, super().log_softmax_backward, axis, dy, y)
