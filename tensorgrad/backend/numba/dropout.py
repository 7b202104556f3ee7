"""Dropout: Philox4x32-10 (see backend/philox.py) inside the loops that use its bits, so they are never stored."""

from typing import Any

import numpy as np
from numba import types

from tensorgrad.backend import philox as plain
from tensorgrad.backend.arrays import Array
from tensorgrad.backend.arrays import Dropout as Draw
from tensorgrad.backend.numba.arrays import BLOCK_ELEMENTS, block_of, flat, is_supported, n_blocks
from tensorgrad.backend.numba.compile import inline, noinline
from tensorgrad.backend.numba.parallel import ALONE, kernel, prange
from tensorgrad.backend.numpy import NumpyBackend

U = np.uint64
LOW, SHIFT = U(plain.LOW_32), U(32)
MULTIPLIER_0, MULTIPLIER_1 = U(plain.MULTIPLIER_0), U(plain.MULTIPLIER_1)
WEYL_0, WEYL_1 = U(plain.WEYL_0), U(plain.WEYL_1)
DRAW = types.Tuple((types.uint64, types.float64, types.uint64, types.uint64, types.uint64))  # what `rule` returns


@inline
def philox(four: Any, step: Any, stream: Any, seed: Any) -> Any:
    """Words 4 four to 4 four + 3 of a stream. All arguments, and the four 32-bit words returned, are uint64."""
    x0, x1, x2, x3 = four & LOW, four >> SHIFT, step & LOW, stream & LOW
    k0, k1 = seed & LOW, seed >> SHIFT
    for _ in range(plain.ROUNDS):
        product_0, product_1 = x0 * MULTIPLIER_0, x2 * MULTIPLIER_1
        x0, x1, x2, x3 = (
            (product_1 >> SHIFT) ^ x1 ^ k0, product_1 & LOW, (product_0 >> SHIFT) ^ x3 ^ k1, product_0 & LOW
        )  # fmt: skip
        k0, k1 = (k0 + WEYL_0) & LOW, (k1 + WEYL_1) & LOW
    return x0, x1, x2, x3


@inline
def fill_bits(words: Any, first: Any, step: Any, stream: Any, seed: Any) -> None:
    """words (n) = the words of a stream from 4 first on, as uint32; n is a multiple of 4."""
    for i in range(words.size // 4):
        a, b, c, d = philox(first + U(i), step, stream, seed)
        words[4 * i] = np.uint32(a)
        words[4 * i + 1] = np.uint32(b)
        words[4 * i + 2] = np.uint32(c)
        words[4 * i + 3] = np.uint32(d)


@inline
def drop_fours(
    x: Any, y: Any, threshold: Any, kept: Any, lost: Any, first: Any, step: Any, stream: Any, seed: Any
) -> None:
    """y = x kept where an element's word is >= threshold, otherwise x lost; the first element has word 4 first."""
    for i in range(x.size // 4):
        a, b, c, d = philox(first + U(i), step, stream, seed)
        y[4 * i] = x[4 * i] * (kept if a >= threshold else lost)
        y[4 * i + 1] = x[4 * i + 1] * (kept if b >= threshold else lost)
        y[4 * i + 2] = x[4 * i + 2] * (kept if c >= threshold else lost)
        y[4 * i + 3] = x[4 * i + 3] * (kept if d >= threshold else lost)


@inline
def words_for(n: int) -> Any:
    """A buffer for the words of n elements, the first of which may be any of the four words of a counter."""
    return np.empty((n + 3) // 4 * 4 + 4, np.uint32)


@noinline
def fill_kept(row: Any, number: int, words: Any, draw: Any) -> None:
    """row = what dropout multiplies the elements from `number` on by. words: of `words_for`; draw: of `rule`."""
    threshold, scale, step, stream, seed = draw
    fill_bits(words[: (row.size + 3) // 4 * 4 + 4], U(number // 4), step, stream, seed)
    first, kept, lost = number % 4, row.dtype.type(scale), row.dtype.type(0)
    for j in range(row.size):
        row[j] = kept if words[first + j] >= threshold else lost


@kernel
def random_bits(words: Any, step: Any, stream: Any, seed: Any, thread: Any = ALONE) -> None:
    """words (n) = the first n words of a stream, as uint32; n is a multiple of 4."""
    for block in prange(n_blocks(words), thread):
        fill_bits(block_of(words, block), U(block * (BLOCK_ELEMENTS // 4)), step, stream, seed)


@kernel
def drop(x: Any, y: Any, threshold: Any, scale: float, step: Any, stream: Any, seed: Any, thread: Any = ALONE) -> None:
    """y = x scale where an element's word is >= threshold, otherwise x 0."""
    kept, lost = x.dtype.type(scale), x.dtype.type(0)
    for block in prange(n_blocks(x), thread):
        first = U(block * (BLOCK_ELEMENTS // 4))
        drop_fours(block_of(x, block), block_of(y, block), threshold, kept, lost, first, step, stream, seed)
        if block == n_blocks(x) - 1:  # up to three elements are left
            last = x.size // 4
            words = philox(U(last), step, stream, seed)
            for i in range(4 * last, x.size):
                y[i] = x[i] * (kept if words[i - 4 * last] >= threshold else lost)


def rule(dropout: Draw | None) -> tuple[Any, float, Any, Any, Any]:
    """Dropout as the kernels need it: the threshold of the words, the scale of kept elements, step, stream and seed."""
    p, seed, stream, step = dropout or (0.0, 0, 0, 0)
    threshold, scale = min(round(p * 2**32), 2**32 - 1), 1 / (1 - p) if p < 1 else 0.0
    return U(threshold), scale, U(step), U(stream), U(seed)


class Dropout(NumpyBackend):
    """The kernels above, for float32 and float64."""

    def random_bits(self, n: int, seed: int, stream: int, step: int) -> Array:
        """The first n words of a Philox stream: (n,) uint32."""
        words = np.empty(n + -n % 4, np.uint32)
        random_bits(words, U(step), U(stream), U(seed))
        return words[:n]

    def dropout(self, x: Array, dropout: Draw) -> Array:
        """x with elements zeroed at random, the others scaled by 1 / (1 - p). Applied to dy it gives dx."""
        if not is_supported(x):
            return super().dropout(x, dropout)
        y = np.empty(x.shape, x.dtype)
        drop(flat(x), y.reshape(-1), *rule(dropout))
        return y
