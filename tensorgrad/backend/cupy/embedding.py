"""Rows of a table by number, and their gradient: sorted on the GPU, added up in one order, never waited for."""

import math
from typing import Any

import numpy as np

from tensorgrad.backend.arrays import Array, as_rows
from tensorgrad.backend.cupy.kernels import THREADS, WARPS, Kernels, claimed, wide_dtype
from tensorgrad.backend.cupy.launcher import c_type

SEGMENT = 64  # sorted places that are added up by one block: SEGMENT of embedding.cu
MAX_CHUNKS = 64  # of the sort: each has a count for every row of the table
MAX_COUNTS = 2**27  # counts of all chunks


class Embedding(Kernels):
    """The kernels of embedding.cu."""

    def embedding(self, weight: Array, indices: Array) -> Array:
        """Row `indices` of weight (V, C): indices (...) -> (..., C)."""
        if not claimed(weight) or not indices.size:
            return super().embedding(weight, indices)
        indices = self._integers(indices)
        y = self.xp.empty((*indices.shape, weight.shape[1]), weight.dtype)
        self._start_embedding(
            "embedding", (-(-indices.size // WARPS),), THREADS, (self.contiguous(weight), indices, y),
            (np.int64(indices.size), *map(np.int32, weight.shape)), weight, indices,
        )  # fmt: skip
        return y

    def embedding_backward(self, dy: Array, indices: Array, shape: tuple[int, ...]) -> Array:
        """dweight (V, C): every row's dy added to the row it was read from, in the order of reading."""
        if not claimed(dy) or not math.prod(shape) or indices.size > 2**31 - SEGMENT:
            return super().embedding_backward(dy, indices, shape)
        dy, indices = as_rows(self.contiguous(dy)), self._integers(indices)
        (n_rows, n), places = shape, indices.size
        order, starts = self._sorted(dy, indices, n_rows)
        dweight = self.xp.zeros(shape, wide_dtype(dy.dtype))
        segments = -(-places // SEGMENT)
        head, tail = (self.xp.empty((segments, n), wide_dtype(dy.dtype)) for _ in range(2))
        threads = min(THREADS, -(-n // 32) * 32)
        grid, sizes = (segments, -(-n // threads)), tuple(map(np.int32, (places, n_rows, n)))
        self._start_embedding(
            "add_segments", grid, threads, (dy, indices, order, starts, dweight, head, tail), sizes, dy, indices
        )
        self._start_embedding(
            "join_segments", grid, threads, (indices, order, starts, dweight, head, tail), sizes, dy, indices
        )
        return dweight

    def _sorted(self, dy: Array, indices: Array, n_rows: int) -> tuple[Array, Array]:
        """The places in the order of the rows they read, and where each row's begin: (n,), (V + 1,), int32."""
        places = indices.size
        chunks = max(1, min(MAX_CHUNKS, MAX_COUNTS // n_rows, -(-places // THREADS)))
        chunk = -(-places // (chunks * THREADS)) * THREADS
        chunks = -(-places // chunk)
        counts = self.xp.zeros((chunks, n_rows), np.int32)
        ranks, totals, starts, order = (
            self.xp.empty(size, np.int32) for size in (places, n_rows, n_rows + 1, places)
        )  # fmt: skip
        sizes = tuple(map(np.int32, (places, n_rows, chunk)))
        self._start_embedding("rank", (chunks,), THREADS, (indices, counts, ranks), sizes, dy, indices)
        by_row = (-(-n_rows // THREADS),)
        self._start_embedding(
            "count", by_row, THREADS, (counts, totals), (np.int32(chunks), np.int32(n_rows)), dy, indices
        )
        self._start_embedding("scan", (1,), 1024, (totals, starts), (np.int32(n_rows),), dy, indices)
        by_place = (-(-places // THREADS),)
        self._start_embedding("place", by_place, THREADS, (indices, counts, ranks, starts, order), sizes, dy, indices)
        return order, starts

    def _start_embedding(
        self, kernel: str, grid: tuple[int, ...], threads: int, arrays: tuple[Any, ...], options: tuple[Any, ...],
        x: Array, indices: Array,
    ) -> None:  # fmt: skip
        defines = {"T": c_type(x.dtype), "I": "int" if indices.dtype.itemsize == 4 else "long long"}
        self.launcher.launch("embedding", kernel, grid, (threads,), (*arrays, *options), defines=defines)

    def _integers(self, indices: Array) -> Array:
        """Indices as int32 or int64, whichever they are, without gaps."""
        if indices.dtype.name not in ("int32", "int64"):
            indices = indices.astype(np.int64)
        return self.contiguous(indices)
