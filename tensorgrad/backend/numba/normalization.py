"""Layer normalisation and RMS normalisation, a row at a time: it is read from memory once and then from the cache."""

from typing import Any

import numpy as np

from tensorgrad.backend.arrays import Array
from tensorgrad.backend.numba.arrays import contiguous, flat, is_supported, rows
from tensorgrad.backend.numba.compile import inline
from tensorgrad.backend.numba.mathematics import ONE
from tensorgrad.backend.numba.parallel import ALONE, kernel, prange
from tensorgrad.backend.numba.reductions import dot, dot_about, squares_about, total
from tensorgrad.backend.numpy import NumpyBackend

BLOCK_ROWS = 64  # one thread sums a block of rows; the sums of the blocks are added in order


@inline
def normalize_row(x: Any, weight: Any, bias: Any, y: Any, small: Any) -> Any:
    """y = (x - mean) rstd weight + bias for one row, with rstd = 1 / sqrt(variance + small); returns mean and rstd."""
    per_element = ONE / x.dtype.type(x.size)
    mu = total(x) * per_element
    scale = ONE / np.sqrt(squares_about(x, mu) * per_element + small)
    for j in range(x.size):
        y[j] = (x[j] - mu) * scale * weight[j] + bias[j]
    return mu, scale


@kernel
def layer_norm(x: Any, weight: Any, bias: Any, y: Any, mean: Any, rstd: Any, eps: float, thread: Any = ALONE) -> None:
    """y = (x - mean) rstd weight + bias, with rstd = 1 / sqrt(variance + eps)."""
    small = x.dtype.type(eps)
    for i in prange(x.shape[0], thread):
        mean[i], rstd[i] = normalize_row(x[i], weight, bias, y[i], small)


@kernel
def add_layer_norm(
    x: Any, residual: Any, weight: Any, bias: Any, both: Any, y: Any, mean: Any, rstd: Any, eps: float,
    thread: Any = ALONE,
) -> None:  # fmt: skip
    """both = x + residual, and y = layer_norm(both)."""
    small = x.dtype.type(eps)
    for i in prange(x.shape[0], thread):
        xi, ri, bi = x[i], residual[i], both[i]
        for j in range(xi.size):
            bi[j] = xi[j] + ri[j]
        mean[i], rstd[i] = normalize_row(bi, weight, bias, y[i], small)


@kernel
def layer_norm_backward(
    dy: Any, x: Any, weight: Any, mean: Any, rstd: Any, dsum: Any, dx: Any, dweight: Any, dbias: Any,
    thread: Any = ALONE,
) -> None:  # fmt: skip
    """dx = rstd (g - mean(g) - xhat mean(g xhat)) + dsum, with g = dy weight and xhat = (x - mean) rstd.

    dweight, dbias (blocks, n): the sums of dy xhat and dy over each block of rows. dsum and dbias may be empty.
    """
    per_element = ONE / x.dtype.type(x.shape[1])
    for block in prange(dweight.shape[0], thread):
        for i in range(block * BLOCK_ROWS, min((block + 1) * BLOCK_ROWS, x.shape[0])):
            dyi, xi, dxi, mu, scale = dy[i], x[i], dx[i], mean[i], rstd[i]
            mean_g = dot(dyi, weight) * per_element
            along = dot_about(dyi, weight, xi, mu) * per_element * scale * scale
            for j in range(xi.size):
                dxi[j] = scale * (dyi[j] * weight[j] - mean_g - (xi[j] - mu) * along)
            if dsum.size > 0:
                dsi = dsum[i]
                for j in range(xi.size):
                    dxi[j] += dsi[j]
            for j in range(xi.size):
                dweight[block, j] += dyi[j] * ((xi[j] - mu) * scale)
            if dbias.size > 0:
                for j in range(xi.size):
                    dbias[block, j] += dyi[j]


@kernel
def layer_norm_backward_weight(dy: Any, x: Any, mean: Any, rstd: Any, partial: Any, thread: Any = ALONE) -> None:
    """partial (blocks, n): the sum of dy (x - mean) rstd over each block of rows."""
    for block in prange(partial.shape[0], thread):
        for i in range(block * BLOCK_ROWS, min((block + 1) * BLOCK_ROWS, x.shape[0])):
            mu, scale = mean[i], rstd[i]
            for j in range(x.shape[1]):
                partial[block, j] += dy[i, j] * ((x[i, j] - mu) * scale)


@kernel
def column_sums(x: Any, partial: Any, thread: Any = ALONE) -> None:
    """partial (blocks, n): the sum of each block of rows."""
    for block in prange(partial.shape[0], thread):
        for i in range(block * BLOCK_ROWS, min((block + 1) * BLOCK_ROWS, x.shape[0])):
            for j in range(x.shape[1]):
                partial[block, j] += x[i, j]


@kernel
def rms_norm(x: Any, weight: Any, y: Any, rrms: Any, eps: float, thread: Any = ALONE) -> None:
    """y = x rrms weight, with rrms = 1 / sqrt(mean(x^2) + eps)."""
    per_element, small = ONE / x.dtype.type(x.shape[1]), x.dtype.type(eps)
    for i in prange(x.shape[0], thread):
        xi, yi = x[i], y[i]
        scale = ONE / np.sqrt(dot(xi, xi) * per_element + small)
        for j in range(xi.size):
            yi[j] = xi[j] * scale * weight[j]
        rrms[i] = scale


@kernel
def rms_norm_backward_x(dy: Any, x: Any, weight: Any, rrms: Any, dx: Any, thread: Any = ALONE) -> None:
    """dx = rrms (g - xhat mean(g xhat)), with g = dy weight and xhat = x rrms."""
    per_element = ONE / x.dtype.type(x.shape[1])
    for i in prange(x.shape[0], thread):
        dyi, xi, dxi, scale = dy[i], x[i], dx[i], rrms[i]
        along = dot_about(dyi, weight, xi, x.dtype.type(0)) * per_element * scale * scale
        for j in range(xi.size):
            dxi[j] = scale * (dyi[j] * weight[j] - xi[j] * along)


def supports(x: Array, like_x: Array | None = None, per_row: tuple[Array, ...] = (), *vectors: Array | None) -> bool:
    """Whether kernels support x (..., n), an array of its shape, arrays with one element per row, and vectors (n)."""
    given = [v for v in vectors if v is not None]
    return (
        is_supported(x, *([] if like_x is None else [like_x]), *per_row, *given)
        and x.size > 0
        and (like_x is None or like_x.shape == x.shape)
        and all(stat.size * x.shape[-1] == x.size for stat in per_row)
        and all(v.shape == x.shape[-1:] for v in given)
    )


def supports_backward(
    dy: Array, x: Array, weight: Array | None, mean: Array, rstd: Array, dsum: Array | None
) -> bool:
    """Whether the kernel of layer_norm's backward supports these arrays."""
    return supports(x, dy, (mean, rstd), weight) and (dsum is None or supports(x, dsum))


def or_constant(vector: Array | None, constant: float, x: Array) -> Array:
    """The weight or bias; if it is None, a constant vector without effect, so that one kernel serves all cases."""
    return np.full(x.shape[-1], constant, x.dtype) if vector is None else contiguous(vector)


def partial_sums(x: Array) -> Array:
    """Zeros (blocks, n) for the sums of the blocks of rows of x (rows, n)."""
    return np.zeros((-(-len(x) // BLOCK_ROWS), x.shape[1]), x.dtype)


class Normalization(NumpyBackend):
    """The kernels above, for float32 and float64."""

    def layer_norm(self, x: Array, weight: Array | None, bias: Array | None, eps: float) -> tuple[Array, Array, Array]:
        """x (..., n) -> y, and mean and 1/std (..., 1)."""
        if not supports(x, None, (), weight, bias):
            return super().layer_norm(x, weight, bias, eps)
        y = np.empty(x.shape, x.dtype)
        mean, rstd = (np.empty((*x.shape[:-1], 1), x.dtype) for _ in range(2))
        scale, shift = or_constant(weight, 1, x), or_constant(bias, 0, x)
        layer_norm(rows(x), scale, shift, rows(y), flat(mean), flat(rstd), float(eps))
        return y, mean, rstd

    def add_layer_norm(
        self, x: Array, residual: Array, weight: Array | None, bias: Array | None, eps: float
    ) -> tuple[Array, Array, Array, Array]:
        """x + residual, its layer_norm, and mean and 1/std (..., 1)."""
        if not supports(x, residual, (), weight, bias):
            return super().add_layer_norm(x, residual, weight, bias, eps)
        both, y = np.empty(x.shape, x.dtype), np.empty(x.shape, x.dtype)
        mean, rstd = (np.empty((*x.shape[:-1], 1), x.dtype) for _ in range(2))
        scale, shift = or_constant(weight, 1, x), or_constant(bias, 0, x)
        add_layer_norm(
            rows(x), rows(residual), scale, shift, rows(both), rows(y), flat(mean), flat(rstd), float(eps)
        )  # fmt: skip
        return both, y, mean, rstd

    def layer_norm_backward(
        self, dy: Array, x: Array, weight: Array | None, mean: Array, rstd: Array, dsum: Array | None,
        needs: tuple[bool, ...],
    ) -> tuple[Array | None, Array | None, Array | None]:  # fmt: skip
        """dx of layer_norm plus dsum, dweight and dbias, in one pass over dy and x."""
        needs_x, needs_weight, needs_bias = needs
        if not (needs_x and needs_weight) or not supports_backward(dy, x, weight, mean, rstd, dsum):
            return super().layer_norm_backward(dy, x, weight, mean, rstd, dsum, needs)
        return self._layer_norm_backward(dy, x, weight, mean, rstd, dsum, needs_bias)

    def layer_norm_backward_x(
        self, dy: Array, x: Array, weight: Array | None, mean: Array, rstd: Array, dsum: Array | None = None
    ) -> Array:
        """dx of layer_norm, plus dsum."""
        if not supports_backward(dy, x, weight, mean, rstd, dsum):
            return super().layer_norm_backward_x(dy, x, weight, mean, rstd, dsum)
        return self._layer_norm_backward(dy, x, weight, mean, rstd, dsum, False)[0]

    def _layer_norm_backward(
        self, dy: Array, x: Array, weight: Array | None, mean: Array, rstd: Array, dsum: Array | None, needs_bias: bool
    ) -> tuple[Array, Array, Array | None]:
        dx, dweight = np.empty(x.shape, x.dtype), partial_sums(rows(x))
        dbias = partial_sums(rows(x)) if needs_bias else dweight[:0]
        layer_norm_backward(
            rows(dy), rows(x), or_constant(weight, 1, x), flat(mean), flat(rstd),
            dweight[:0] if dsum is None else rows(dsum), rows(dx), dweight, dbias,
        )  # fmt: skip
        return dx, dweight.sum(axis=0), dbias.sum(axis=0) if needs_bias else None

    def layer_norm_backward_weight(self, dy: Array, x: Array, mean: Array, rstd: Array) -> Array:
        """dweight of layer_norm: (n,)."""
        if not supports(x, dy, (mean, rstd)):
            return super().layer_norm_backward_weight(dy, x, mean, rstd)
        partial = partial_sums(rows(x))
        layer_norm_backward_weight(rows(dy), rows(x), flat(mean), flat(rstd), partial)
        return partial.sum(axis=0)

    def linear_backward_bias(self, dy: Array) -> Array:
        """The sum over all rows: (n,)."""
        if not supports(dy):
            return super().linear_backward_bias(dy)
        partial = partial_sums(rows(dy))
        column_sums(rows(dy), partial)
        return partial.sum(axis=0)

    def rms_norm(self, x: Array, weight: Array | None, eps: float) -> tuple[Array, Array]:
        """x (..., n) -> y, and 1/rms (..., 1)."""
        if not supports(x, None, (), weight):
            return super().rms_norm(x, weight, eps)
        y, rrms = np.empty(x.shape, x.dtype), np.empty((*x.shape[:-1], 1), x.dtype)
        rms_norm(rows(x), or_constant(weight, 1, x), rows(y), flat(rrms), float(eps))
        return y, rrms

    def rms_norm_backward_x(
        self, dy: Array, x: Array, weight: Array | None, rrms: Array, dsum: Array | None = None
    ) -> Array:
        """dx of rms_norm, plus dsum."""
        if not supports(x, dy, (rrms,), weight):
            return super().rms_norm_backward_x(dy, x, weight, rrms, dsum)
        dx = np.empty(x.shape, x.dtype)
        rms_norm_backward_x(rows(dy), rows(x), or_constant(weight, 1, x), flat(rrms), rows(dx))
        if dsum is not None:
            dx += dsum
        return dx

    def rms_norm_backward_weight(self, dy: Array, x: Array, rrms: Array) -> Array:
        """dweight of rms_norm: (n,). It is that of layer_norm with mean 0."""
        return self.layer_norm_backward_weight(dy, x, np.zeros_like(rrms), rrms)
