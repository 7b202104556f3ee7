"""Rotary position embedding: one thread per pair."""

import math
from functools import cached_property

import numpy as np

from tensorgrad.backend.arrays import Array
from tensorgrad.backend.cupy.kernels import THREADS, Kernels, n_rows, supported
from tensorgrad.backend.cupy.launcher import c_type
from tensorgrad.backend.cupy.signature import DTYPES

POSITIONS = {DTYPES[name]: name for name in ("int", "long long", "float", "double")}


class RotaryEmbedding(Kernels):
    """The kernel of rotary_embedding.cu."""

    def rotary_embedding(self, x: Array, positions: Array, base: float, inverse: bool = False) -> Array:
        if not supported(x) or positions.dtype.name not in POSITIONS or not positions.size:
            return super().rotary_embedding(x, positions, base, inverse)
        rows, half, shape = n_rows(x), x.shape[-1] // 2, x.shape[:-1]
        if positions.size not in (1, shape[-1]) or (positions.ndim and positions.shape[-1] != positions.size):
            positions = self.xp.broadcast_to(positions, shape)  # each row has its own
        y = self.xp.empty(x.shape, x.dtype)
        self.launcher.launch(
            "rotary_embedding", "rotary_embedding", (-(-rows * half // THREADS),), (THREADS,),
            (self.contiguous(x), self.contiguous(positions), self.turns(half, base), y, np.int64(rows), np.int32(half),
             np.int32(positions.size), np.int32(inverse)),
            defines={"T": c_type(x.dtype), "P": POSITIONS[positions.dtype.name]},
        )  # fmt: skip
        return y

    def turns(self, half: int, base: float) -> Array:
        """The turns per position of each of `half` pairs, (half,) float64."""
        key = half, float(base)
        if key not in self._turns:
            self._turns[key] = self.asarray(base ** (-np.arange(half) / half) / (2 * math.pi))
        return self._turns[key]

    @cached_property
    def _turns(self) -> dict[tuple[int, float], Array]:
        """The turns per position of every pair, on the GPU, for each head size and base."""
        return {}
