"""Rows of a table by index, and their gradient, sorted and summed on the GPU in a fixed order."""

import math
from typing import Any

import numpy as np

from tensorgrad.backend.arrays import Array, as_rows
from tensorgrad.backend.cupy.kernels import THREADS, WARPS, Kernels, supported, wide_dtype
from tensorgrad.backend.cupy.launcher import c_type

SEGMENT = 64  # sorted positions that one block sums: SEGMENT of embedding.cu
MAX_CHUNKS = 64  # of the sort; each chunk has a count for every row of the table
MAX_COUNTS = 2**27  # of all chunks


class Embedding(Kernels):
    """The kernels of embedding.cu."""

    def embedding(self, weight: Array, indices: Array) -> Array:
        if not supported(weight) or not indices.size:
            return super().embedding(weight, indices)
        indices = self.indices(indices)
        y = self.xp.empty((*indices.shape, weight.shape[1]), weight.dtype)
        self._start_embedding(
            "embedding", (-(-indices.size // WARPS),), THREADS, (self.contiguous(weight), indices, y),
            (np.int64(indices.size), *map(np.int32, weight.shape)), weight, indices,
        )  # fmt: skip
        return y

    def embedding_backward(self, dy: Array, indices: Array, shape: tuple[int, ...]) -> Array:
        if not supported(dy) or not math.prod(shape) or indices.size > 2**31 - SEGMENT:
            return super().embedding_backward(dy, indices, shape)
        dy, indices = as_rows(self.contiguous(dy)), self.indices(indices)
        (n_rows, n), n_positions = shape, indices.size
        order, starts = self._sorted(dy, indices, n_rows)
        dweight = self.xp.zeros(shape, wide_dtype(dy.dtype))
        segments = -(-n_positions // SEGMENT)
        head, tail = (self.xp.empty((segments, n), wide_dtype(dy.dtype)) for _ in range(2))
        threads = min(THREADS, -(-n // 32) * 32)
        grid, sizes = (segments, -(-n // threads)), tuple(map(np.int32, (n_positions, n_rows, n)))
        arrays = (indices, order, starts, dweight, head, tail)
        self._start_embedding("add_segments", grid, threads, (dy, *arrays), sizes, dy, indices)
        self._start_embedding("join_segments", grid, threads, arrays, sizes, dy, indices)
        return dweight

    def _sorted(self, dy: Array, indices: Array, n_rows: int) -> tuple[Array, Array]:
        """The positions sorted by index, and where each index begins among them: (n,), (V + 1,), int32."""
        n_positions = indices.size
        chunks = max(1, min(MAX_CHUNKS, MAX_COUNTS // n_rows, -(-n_positions // THREADS)))
        chunk = -(-n_positions // (chunks * THREADS)) * THREADS
        chunks = -(-n_positions // chunk)
        counts = self.xp.zeros((chunks, n_rows), np.int32)
        ranks, order = (self.xp.empty(n_positions, np.int32) for _ in range(2))
        totals, starts = self.xp.empty(n_rows, np.int32), self.xp.empty(n_rows + 1, np.int32)
        sizes = tuple(map(np.int32, (n_positions, n_rows, chunk)))
        self._start_embedding("rank", (chunks,), THREADS, (indices, counts, ranks), sizes, dy, indices)
        by_row = (-(-n_rows // THREADS),)
        self._start_embedding(
            "count", by_row, THREADS, (counts, totals), (np.int32(chunks), np.int32(n_rows)), dy, indices
        )
        self._start_embedding("scan", (1,), 1024, (totals, starts), (np.int32(n_rows),), dy, indices)
        grid = (-(-n_positions // THREADS),)
        self._start_embedding("place", grid, THREADS, (indices, counts, ranks, starts, order), sizes, dy, indices)
        return order, starts

    def _start_embedding(
        self, kernel: str, grid: tuple[int, ...], threads: int, arrays: tuple[Any, ...], options: tuple[Any, ...],
        x: Array, indices: Array,
    ) -> None:  # fmt: skip
        defines = {"T": c_type(x.dtype), "I": "int" if indices.dtype.itemsize == 4 else "long long"}
        self.launcher.launch("embedding", kernel, grid, (threads,), (*arrays, *options), defines=defines)
