"""Rotary embedding: the pairs of a row are rotated in one pass over memory."""

import functools
from typing import Any

import numpy as np

from tensorgrad.backend.arrays import Array
from tensorgrad.backend.numba.arrays import is_supported
from tensorgrad.backend.numba.parallel import ALONE, MIN_PARALLEL_ELEMENTS, prange
from tensorgrad.backend.numba.strided import array, contiguous_row, strided, with_contiguous_rows
from tensorgrad.backend.numpy import NumpyBackend


@strided(lambda real: (array(real, 4),) * 4, min_parallel=MIN_PARALLEL_ELEMENTS)
def rotate(x: Any, y: Any, cos: Any, sin: Any, thread: Any = ALONE) -> None:
    """y (B, H, T, D) from x; cos and sin (B, H, T, D/2), whose axes of length 1 broadcast."""
    n_batch, n_head, n_time, width = x.shape
    half = width // 2
    for head in prange(n_batch * n_head, thread):
        b, h = head // n_head, head % n_head
        for t in range(n_time):
            place = min(b, cos.shape[0] - 1), min(h, cos.shape[1] - 1), min(t, cos.shape[2] - 1)
            c, s = contiguous_row(cos[place]), contiguous_row(sin[place])
            row, out = contiguous_row(x[b, h, t]), contiguous_row(y[b, h, t])
            first, second, out_first, out_second = row[:half], row[half:], out[:half], out[half:]
            for i in range(half):
                out_first[i] = first[i] * c[i] - second[i] * s[i]
            for i in range(half):
                out_second[i] = first[i] * s[i] + second[i] * c[i]


@functools.lru_cache(maxsize=8)
def rotations(positions: bytes, dtype: str, shape: tuple[int, ...], half: int, base: float, real: Any) -> list[Array]:
    """The cosines and sines of all angles (..., half): queries and keys of every layer have the same positions."""
    angle = np.frombuffer(positions, dtype).reshape(shape)[..., None] * base ** (-np.arange(half) / half)
    return [function(angle).astype(real) for function in (np.cos, np.sin)]


class RotaryEmbedding(NumpyBackend):
    """The kernel above, for float32 and float64."""

    def rotary_embedding(self, x: Array, positions: Array, base: float, inverse: bool = False) -> Array:
        """Rotate the pairs (x[i], x[i + D/2]) by positions * base^(-2i / D)."""
        if not is_supported(x) or x.ndim > 4 or not x.size:
            return super().rotary_embedding(x, positions, base, inverse)
        cos, sin = rotations(positions.tobytes(), positions.dtype.str, positions.shape, x.shape[-1] // 2, base, x.dtype)
        y = np.empty(x.shape, x.dtype)
        operands = with_contiguous_rows(x), y, cos, -sin if inverse else sin
        rotate(*(a.reshape((1,) * (4 - a.ndim) + a.shape) for a in operands))
        return y
