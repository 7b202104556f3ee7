"""Activations, block by block; and GPT-2's GELU in as few passes over a block as it takes, each in place."""

from collections.abc import Callable

import numpy as np

from tensorgrad.backend.arrays import Array
from tensorgrad.backend.math import GELU_CUBIC, GELU_SCALE
from tensorgrad.backend.numpy.blocks import FEW, Blocks, alike


def gelu_tanh(y: Array, x: Array) -> None:
    """y = x (1 + tanh u) / 2."""
    fill_u(y, x)
    np.tanh(y, out=y)
    y += 1
    y *= x
    y *= 0.5


def gelu_tanh_backward(dx: Array, dy: Array, x: Array) -> None:
    """dx = dy (1 + t) (1/2 + (1 - t) x/2 du/dx), with t = tanh u and x du/dx = scale (x + 3 cubic x^3)."""
    t = np.empty_like(x)
    fill_u(t, x)
    np.tanh(t, out=t)
    np.multiply(x, x, out=dx)
    dx *= 1.5 * GELU_SCALE * GELU_CUBIC
    dx += 0.5 * GELU_SCALE
    dx *= x
    dx *= 1 - t
    dx += 0.5
    t += 1
    dx *= t
    dx *= dy


def gelu_tanh_again(dx: Array, x: Array) -> None:
    """x becomes gelu_tanh(x), and dx is dy before: both from one tanh."""
    t, q = np.empty_like(x), np.empty_like(x)
    fill_u(t, x)
    np.tanh(t, out=t)
    np.multiply(x, x, out=q)
    q *= 1.5 * GELU_SCALE * GELU_CUBIC
    q += 0.5 * GELU_SCALE
    q *= x
    q *= 1 - t
    q += 0.5
    t += 1
    q *= t
    dx *= q
    x *= t
    x *= 0.5


def fill_u(u: Array, x: Array) -> None:
    """u = scale (x + cubic x^3)."""
    np.multiply(x, x, out=u)
    u *= GELU_SCALE * GELU_CUBIC
    u += GELU_SCALE
    u *= x


class Activation(Blocks):
    """The functions above; the rest is the plain mathematics, where each element depends on its like only."""

    def silu(self, x: Array) -> Array:
        """x sigmoid(x)."""
        return self._elementwise(super().silu, x)

    def silu_backward(self, dy: Array, x: Array) -> Array:
        """dx of silu."""
        return self._elementwise(super().silu_backward, dy, x)

    def gelu(self, x: Array) -> Array:
        """x times the normal distribution function of x."""
        return self._elementwise(super().gelu, x)

    def gelu_backward(self, dy: Array, x: Array) -> Array:
        """dx of gelu."""
        return self._elementwise(super().gelu_backward, dy, x)

    def gelu_tanh(self, x: Array) -> Array:
        """GPT-2's approximation of gelu."""
        if x.size < FEW or not alike(x):
            return super().gelu_tanh(x)
        y = np.empty(x.shape, x.dtype)
        self._in_blocks(gelu_tanh, y, x)
        return y

    def gelu_tanh_backward(self, dy: Array, x: Array) -> Array:
        """dx of gelu_tanh."""
        if x.size < FEW or not alike(dy, x):
            return super().gelu_tanh_backward(dy, x)
        dx = np.empty(x.shape, x.dtype)
        self._in_blocks(gelu_tanh_backward, dx, dy, x)
        return dx

    def gelu_tanh_again(self, dy: Array, x: Array) -> tuple[Array, Array]:
        """dx of gelu_tanh and gelu_tanh(x) once more, in place of dy and x."""
        if x.size < FEW or not alike(dy, x) or not (dy.flags.writeable and x.flags.writeable):
            return super().gelu_tanh_again(dy, x)
        self._in_blocks(gelu_tanh_again, dy, x)
        return dy, x

    def _elementwise(self, fn: Callable[..., Array], *arrays: Array) -> Array:
        first = arrays[0]
        if first.size < FEW or any((x.shape, x.dtype) != (first.shape, first.dtype) for x in arrays):
            return fn(*arrays)
        if not all(x.flags.c_contiguous for x in arrays):
            return fn(*arrays)
        y = np.empty(first.shape, first.dtype)

        def block(out: Array, *parts: Array) -> None:
            out[...] = fn(*parts)

        self._in_blocks(block, y, *arrays)
        return y
