"""Layer norm, a block of rows at a time: passes are in place, and every sum over a row is a product of vectors.

BLAS needs a quarter of the time that NumPy needs to sum rows. In the functions x is (rows, n), and mean and rstd are
(rows, 1).
"""

import functools

import numpy as np

from tensorgrad.backend.arrays import Array
from tensorgrad.backend.numpy.blocks import MIN_BLOCKED_ELEMENTS, Blocks, same_layout


def layer_norm(
    y: Array, mean: Array, rstd: Array, x: Array, weight: Array | None, bias: Array | None, eps: float
) -> None:
    """y, mean and rstd of x."""
    np.matmul(x, one_nth(x), out=mean[:, 0])
    np.subtract(x, mean, out=y)
    variance = np.vecdot(y, y)[:, None] / x.shape[1]
    np.divide(1, np.sqrt(variance + eps), out=rstd)
    y *= rstd
    if weight is not None:
        y *= weight
    if bias is not None:
        y += bias


def add_layer_norm(
    total: Array, y: Array, mean: Array, rstd: Array, x: Array, residual: Array,
    weight: Array | None, bias: Array | None, eps: float,
) -> None:  # fmt: skip
    """total = x + residual, and layer_norm of that."""
    np.add(x, residual, out=total)
    layer_norm(y, mean, rstd, total, weight, bias, eps)


def backward_x(
    weight: Array | None, dx: Array, dy: Array, x: Array, mean: Array, rstd: Array, dsum: Array | None = None
) -> None:
    """dx = rstd (g - mean(g) - xhat mean(g xhat)), with g = dy weight and xhat = (x - mean) rstd; plus dsum."""
    centered = x - mean
    np.multiply(dy, 1 if weight is None else weight, out=dx)
    mean_of_g = np.matmul(dx, one_nth(x))[:, None]
    centered *= rstd**2 * np.vecdot(dx, centered)[:, None] / x.shape[1]  # xhat mean(g xhat)
    dx -= mean_of_g
    dx -= centered
    dx *= rstd
    if dsum is not None:
        dx += dsum


def backward_weight(dweight: Array, dy: Array, x: Array, mean: Array, rstd: Array) -> None:
    """dweight (n) = the sum of dy xhat over the rows."""
    centered = x - mean
    centered *= dy
    np.matmul(rstd[:, 0], centered, out=dweight)


def one_nth(x: Array) -> Array:
    """(n,), every element 1 / n: the product of a row and this is the mean of the row."""
    return np.full(x.shape[1], 1 / x.shape[1], x.dtype)


class Normalization(Blocks):
    """The functions above, for contiguous arrays of one dtype."""

    def layer_norm(self, x: Array, weight: Array | None, bias: Array | None, eps: float) -> tuple[Array, Array, Array]:
        if not supported([x], weight, bias):
            return super().layer_norm(x, weight, bias, eps)
        y, mean, rstd = np.empty(x.shape, x.dtype), empty_per_row(x), empty_per_row(x)
        fn = functools.partial(layer_norm, weight=weight, bias=bias, eps=eps)
        self._in_blocks_of_rows(fn, y, mean, rstd, x)
        return y, mean, rstd

    def add_layer_norm(
        self, x: Array, residual: Array, weight: Array | None, bias: Array | None, eps: float
    ) -> tuple[Array, Array, Array, Array]:
        if not supported([x, residual], weight, bias):
            return super().add_layer_norm(x, residual, weight, bias, eps)
        total, y = (np.empty(x.shape, x.dtype) for _ in range(2))
        mean, rstd = empty_per_row(x), empty_per_row(x)
        fn = functools.partial(add_layer_norm, weight=weight, bias=bias, eps=eps)
        self._in_blocks_of_rows(fn, total, y, mean, rstd, x, residual)
        return total, y, mean, rstd

    def layer_norm_backward(
        self, dy: Array, x: Array, weight: Array | None, mean: Array, rstd: Array, dsum: Array | None,
        needs: tuple[bool, ...],
    ) -> tuple[Array | None, Array | None, Array | None]:  # fmt: skip
        """dx plus dsum, dweight and dbias, all three computed while a block of dy and x is in the cache."""
        added = [] if dsum is None else [dsum]
        if not all(needs[:2]) or not supported([dy, x, *added], weight, mean, rstd):
            return super().layer_norm_backward(dy, x, weight, mean, rstd, dsum, needs)
        dx = np.empty(x.shape, x.dtype)
        rows = [part.reshape(-1, part.shape[-1]) for part in (dx, dy, x, mean, rstd, *added)]
        blocks = self._blocks(*rows[0].shape)
        dweight, dbias = (np.empty((len(blocks), x.shape[-1]), x.dtype) for _ in range(2))

        def work(i: int, dx: Array, dy: Array, x: Array, mean: Array, rstd: Array, dsum: Array | None = None) -> None:
            backward_weight(dweight[i], dy, x, mean, rstd)
            if needs[2]:
                np.sum(dy, axis=0, out=dbias[i])
            backward_x(weight, dx, dy, x, mean, rstd, dsum)

        self._on_all_threads(work, [(i, *(part[block] for part in rows)) for i, block in enumerate(blocks)])
        return dx, dweight.sum(axis=0), dbias.sum(axis=0) if needs[2] else None

    def layer_norm_backward_x(
        self, dy: Array, x: Array, weight: Array | None, mean: Array, rstd: Array, dsum: Array | None = None
    ) -> Array:
        added = [] if dsum is None else [dsum]
        if not supported([dy, x, *added], weight, mean, rstd):
            return super().layer_norm_backward_x(dy, x, weight, mean, rstd, dsum)
        dx = np.empty(x.shape, x.dtype)
        self._in_blocks_of_rows(functools.partial(backward_x, weight), dx, dy, x, mean, rstd, *added)
        return dx

    def layer_norm_backward_weight(self, dy: Array, x: Array, mean: Array, rstd: Array) -> Array:
        """dweight: the sums of the blocks, added in a fixed order."""
        if not supported([dy, x], mean, rstd):
            return super().layer_norm_backward_weight(dy, x, mean, rstd)
        rows = [part.reshape(-1, part.shape[-1]) for part in (dy, x, mean, rstd)]
        blocks = self._blocks(*rows[0].shape)
        sums = np.empty((len(blocks), x.shape[-1]), x.dtype)
        parts = [(own, *(part[block] for part in rows)) for own, block in zip(sums, blocks, strict=True)]
        self._on_all_threads(backward_weight, parts)
        return np.sum(sums, axis=0)


def supported(arrays: list[Array], *others: Array | None) -> bool:
    """Whether the functions above can be used: arrays (..., n) of one shape, and others of the same dtype."""
    first = arrays[0]
    if first.ndim < 2 or first.size < MIN_BLOCKED_ELEMENTS or not same_layout(*arrays):
        return False
    return all(x is None or (x.dtype == first.dtype and x.flags.c_contiguous) for x in others)


def empty_per_row(x: Array) -> Array:
    """An uninitialised array with one number for every row of x (..., n): (..., 1)."""
    return np.empty((*x.shape[:-1], 1), x.dtype)
