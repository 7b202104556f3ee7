"""Activations, computed in blocks; GPT-2's GELU in few passes over a block, each of them in place."""

from collections.abc import Callable

import numpy as np

from tensorgrad.backend.arrays import Array
from tensorgrad.backend.math import GELU_CUBIC, GELU_SCALE
from tensorgrad.backend.numpy.blocks import MIN_BLOCKED_ELEMENTS, Blocks, same_layout


def gelu_tanh(y: Array, x: Array) -> None:
    """y = x (1 + tanh u) / 2."""
    fill_u(y, x)
    np.tanh(y, out=y)
    y += 1
    y *= x
    y *= 0.5


def gelu_tanh_backward(dx: Array, dy: Array, x: Array) -> None:
    """dx = dy gelu_tanh'(x)."""
    fill_derivative(dx, np.empty_like(x), x)
    dx *= dy


def gelu_tanh_recompute(dy: Array, x: Array) -> None:
    """dy becomes dx and x becomes gelu_tanh(x); both need only one tanh."""
    one_plus_t, derivative = np.empty_like(x), np.empty_like(x)
    fill_derivative(derivative, one_plus_t, x)
    dy *= derivative
    x *= one_plus_t
    x *= 0.5


def fill_derivative(d: Array, one_plus_t: Array, x: Array) -> None:
    """d = (1 + t) (1/2 + (1 - t) x/2 du/dx), with t = tanh u and x du/dx = scale (x + 3 cubic x^3); and 1 + t."""
    t = one_plus_t
    fill_u(t, x)
    np.tanh(t, out=t)
    np.multiply(x, x, out=d)
    d *= 1.5 * GELU_SCALE * GELU_CUBIC
    d += 0.5 * GELU_SCALE
    d *= x
    d *= 1 - t
    d += 0.5
    t += 1
    d *= t


def fill_u(u: Array, x: Array) -> None:
    """u = scale (x + cubic x^3)."""
    np.multiply(x, x, out=u)
    u *= GELU_SCALE * GELU_CUBIC
    u += GELU_SCALE
    u *= x


class Activation(Blocks):
    """The functions above; the other activations apply the formula of `math.py` to each block."""

    def silu(self, x: Array) -> Array:
        return self._elementwise(super().silu, x)

    def silu_backward(self, dy: Array, x: Array) -> Array:
        return self._elementwise(super().silu_backward, dy, x)

    def gelu(self, x: Array) -> Array:
        return self._elementwise(super().gelu, x)

    def gelu_backward(self, dy: Array, x: Array) -> Array:
        return self._elementwise(super().gelu_backward, dy, x)

    def gelu_tanh(self, x: Array) -> Array:
        return self._fill(gelu_tanh, super().gelu_tanh, x)

    def gelu_tanh_backward(self, dy: Array, x: Array) -> Array:
        return self._fill(gelu_tanh_backward, super().gelu_tanh_backward, dy, x)

    def gelu_tanh_recompute(self, dy: Array, x: Array) -> tuple[Array, Array]:
        if x.size < MIN_BLOCKED_ELEMENTS or not same_layout(dy, x) or not (dy.flags.writeable and x.flags.writeable):
            return super().gelu_tanh_recompute(dy, x)
        self._in_blocks(gelu_tanh_recompute, dy, x)
        return dy, x

    def _fill(self, fn: Callable[..., None], plain: Callable[..., Array], *arrays: Array) -> Array:
        """The array that fn(y, *arrays) fills in blocks; plain computes small arrays, and those of other layouts."""
        if arrays[0].size < MIN_BLOCKED_ELEMENTS or not same_layout(*arrays):
            return plain(*arrays)
        y = np.empty(arrays[0].shape, arrays[0].dtype)
        self._in_blocks(fn, y, *arrays)
        return y

    def _elementwise(self, fn: Callable[..., Array], *arrays: Array) -> Array:
        """fn(*arrays) in blocks, where the arrays are large, contiguous and of one shape and dtype."""
        first = arrays[0]
        same = all(x.flags.c_contiguous and (x.shape, x.dtype) == (first.shape, first.dtype) for x in arrays)
        if first.size < MIN_BLOCKED_ELEMENTS or not same:
            return fn(*arrays)
        y = np.empty(first.shape, first.dtype)

        def block(out: Array, *parts: Array) -> None:
            out[...] = fn(*parts)

        self._in_blocks(block, y, *arrays)
        return y
