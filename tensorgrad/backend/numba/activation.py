"""Activation functions, each one pass over memory."""

import math
from typing import Any

import numpy as np

from tensorgrad.backend.arrays import Array
from tensorgrad.backend.math import GELU_CUBIC, GELU_SCALE
from tensorgrad.backend.numba.arrays import block_of, elementwise, flat, is_supported, n_blocks
from tensorgrad.backend.numba.mathematics import HALF, ONE, erf, exp, gelu_tanh_at, gelu_tanh_slope, logistic
from tensorgrad.backend.numba.parallel import ALONE, kernel, prange
from tensorgrad.backend.numpy import NumpyBackend

ROOT_HALF = math.sqrt(0.5)
DENSITY = 1 / math.sqrt(2 * math.pi)


@kernel
def sigmoid(x: Any, y: Any, thread: Any = ALONE) -> None:
    """y = 1 / (1 + e^-x)."""
    for block in prange(n_blocks(x), thread):
        xb, yb = block_of(x, block), block_of(y, block)
        for i in range(xb.size):
            yb[i] = logistic(xb[i])


@kernel
def silu(x: Any, y: Any, thread: Any = ALONE) -> None:
    """y = x sigmoid(x)."""
    for block in prange(n_blocks(x), thread):
        xb, yb = block_of(x, block), block_of(y, block)
        for i in range(xb.size):
            yb[i] = xb[i] * logistic(xb[i])


@kernel
def silu_backward(dy: Any, x: Any, dx: Any, thread: Any = ALONE) -> None:
    """dx = dy s (1 + x (1 - s)), with s = sigmoid(x)."""
    for block in prange(n_blocks(x), thread):
        dyb, xb, dxb = block_of(dy, block), block_of(x, block), block_of(dx, block)
        for i in range(xb.size):
            s = logistic(xb[i])
            dxb[i] = dyb[i] * (s * (ONE + xb[i] * (ONE - s)))


@kernel
def swiglu(gate: Any, up: Any, y: Any, thread: Any = ALONE) -> None:
    """y = gate sigmoid(gate) up."""
    for block in prange(n_blocks(gate), thread):
        gb, ub, yb = block_of(gate, block), block_of(up, block), block_of(y, block)
        for i in range(gb.size):
            yb[i] = gb[i] * logistic(gb[i]) * ub[i]


@kernel
def swiglu_backward(dy: Any, gate: Any, up: Any, dgate: Any, dup: Any, thread: Any = ALONE) -> None:
    """dgate = dy up s (1 + gate (1 - s)) and dup = dy gate s, with s = sigmoid(gate)."""
    for block in prange(n_blocks(gate), thread):
        dyb, gb, ub = block_of(dy, block), block_of(gate, block), block_of(up, block)
        dgb, dub = block_of(dgate, block), block_of(dup, block)
        for i in range(gb.size):
            s = logistic(gb[i])
            dgb[i] = dyb[i] * ub[i] * (s * (ONE + gb[i] * (ONE - s)))
            dub[i] = dyb[i] * (gb[i] * s)


@kernel
def erf_of(x: Any, y: Any, thread: Any = ALONE) -> None:
    """y = erf(x)."""
    for block in prange(n_blocks(x), thread):
        xb, yb = block_of(x, block), block_of(y, block)
        for i in range(xb.size):
            yb[i] = erf(xb[i])


@kernel
def gelu(x: Any, y: Any, thread: Any = ALONE) -> None:
    """y = x (1 + erf(x / sqrt 2)) / 2."""
    root_half = x.dtype.type(ROOT_HALF)
    for block in prange(n_blocks(x), thread):
        xb, yb = block_of(x, block), block_of(y, block)
        for i in range(xb.size):
            yb[i] = HALF * xb[i] * (ONE + erf(root_half * xb[i]))


@kernel
def gelu_backward(dy: Any, x: Any, dx: Any, thread: Any = ALONE) -> None:
    """dx = dy (Phi(x) + x phi(x)), with the normal distribution function and density."""
    root_half, density = x.dtype.type(ROOT_HALF), x.dtype.type(DENSITY)
    for block in prange(n_blocks(x), thread):
        dyb, xb, dxb = block_of(dy, block), block_of(x, block), block_of(dx, block)
        for i in range(xb.size):
            cumulative = HALF + HALF * erf(root_half * xb[i])
            dxb[i] = dyb[i] * (cumulative + xb[i] * density * exp(-HALF * xb[i] * xb[i]))


@kernel
def gelu_tanh(x: Any, y: Any, thread: Any = ALONE) -> None:
    """y = x (1 + tanh u) / 2 = x sigmoid(2u). The second form avoids cancellation."""
    scale, cubic = x.dtype.type(2 * GELU_SCALE), x.dtype.type(GELU_CUBIC)
    for block in prange(n_blocks(x), thread):
        xb, yb = block_of(x, block), block_of(y, block)
        for i in range(xb.size):
            yb[i] = gelu_tanh_at(xb[i], scale, cubic)


@kernel
def gelu_tanh_backward(dy: Any, x: Any, dx: Any, thread: Any = ALONE) -> None:
    """dx = dy (s + x s (1 - s) d(2u)/dx), with s = sigmoid(2u)."""
    scale, cubic = x.dtype.type(2 * GELU_SCALE), x.dtype.type(GELU_CUBIC)
    for block in prange(n_blocks(x), thread):
        dyb, xb, dxb = block_of(dy, block), block_of(x, block), block_of(dx, block)
        for i in range(xb.size):
            dxb[i] = dyb[i] * gelu_tanh_slope(xb[i], scale, cubic)


@kernel
def gelu_tanh_recompute(dy: Any, x: Any, thread: Any = ALONE) -> None:
    """dy becomes dx and x becomes gelu_tanh(x), with one exponential for both."""
    scale, cubic = x.dtype.type(2 * GELU_SCALE), x.dtype.type(GELU_CUBIC)
    for block in prange(n_blocks(x), thread):
        dyb, xb = block_of(dy, block), block_of(x, block)
        for i in range(xb.size):
            number = xb[i]  # read once: LLVM cannot know that dy and x do not overlap
            dyb[i] *= gelu_tanh_slope(number, scale, cubic)
            xb[i] = gelu_tanh_at(number, scale, cubic)


class Activation(NumpyBackend):
    """The kernels above, for float32 and float64."""

    def sigmoid(self, x: Array) -> Array:
        """1 / (1 + e^-x)."""
        return elementwise(sigmoid, super().sigmoid, x)

    def silu(self, x: Array) -> Array:
        """x sigmoid(x)."""
        return elementwise(silu, super().silu, x)

    def silu_backward(self, dy: Array, x: Array) -> Array:
        """dx of silu."""
        return elementwise(silu_backward, super().silu_backward, dy, x)

    def swiglu(self, gate: Array, up: Array) -> Array:
        """silu(gate) up."""
        return elementwise(swiglu, super().swiglu, gate, up)

    def swiglu_backward(self, dy: Array, gate: Array, up: Array) -> tuple[Array, Array]:
        """dgate and dup."""
        if not is_supported(dy, gate, up) or not dy.shape == gate.shape == up.shape:
            return super().swiglu_backward(dy, gate, up)
        dgate, dup = np.empty(gate.shape, gate.dtype), np.empty(gate.shape, gate.dtype)
        swiglu_backward(flat(dy), flat(gate), flat(up), dgate.reshape(-1), dup.reshape(-1))
        return dgate, dup

    def erf(self, x: Array) -> Array:
        """2/sqrt(pi) times the integral of exp(-t^2) from 0 to x."""
        return elementwise(erf_of, super().erf, x)

    def gelu(self, x: Array) -> Array:
        """x times the normal distribution function of x."""
        return elementwise(gelu, super().gelu, x)

    def gelu_backward(self, dy: Array, x: Array) -> Array:
        """dx of gelu."""
        return elementwise(gelu_backward, super().gelu_backward, dy, x)

    def gelu_tanh(self, x: Array) -> Array:
        """GPT-2's approximation of gelu."""
        return elementwise(gelu_tanh, super().gelu_tanh, x)

    def gelu_tanh_backward(self, dy: Array, x: Array) -> Array:
        """dx of gelu_tanh."""
        return elementwise(gelu_tanh_backward, super().gelu_tanh_backward, dy, x)

    def gelu_tanh_recompute(self, dy: Array, x: Array) -> tuple[Array, Array]:
        """dx of gelu_tanh and the recomputed gelu_tanh(x), written over dy and x if possible."""
        if not is_supported(dy, x) or dy.shape != x.shape or not (dy.flags.carray and x.flags.carray):
            return super().gelu_tanh_recompute(dy, x)
        gelu_tanh_recompute(dy.reshape(-1), x.reshape(-1))
        return dy, x
