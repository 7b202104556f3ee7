"""Attention in blocks of keys and queries, and over a cache of keys; no matrix of scores reaches memory.

attention_forward.cu and attention_backward.cu are for half precision and tensor cores, attention_float.cu for float32,
attention_decode.cu for a few queries over many keys. Operands keep the strides they come with, so that q, k and v may
be parts of one projection and nothing is transposed.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from tensorgrad.backend.arrays import Array
from tensorgrad.backend.arrays import Dropout as Draw
from tensorgrad.backend.cupy.dropout import Dropout
from tensorgrad.backend.cupy.kernels import claimed
from tensorgrad.backend.cupy.launcher import c_type

LARGEST_HEAD = 128
FEW_QUERIES = 4  # so many are worked on one by one, each over all keys
THREADS, THREADS_FLOAT = 128, 256
DECODE_BLOCKS = 264  # twice the multiprocessors of an H100; the same number everywhere, so that results are the same
DECODE_KEYS = 64  # of a part, at least


@dataclass(frozen=True)
class Problem:
    """What all kernels of one call are told."""

    q_shape: tuple[int, int, int, int]  # (B, H, T, D)
    key_shape: tuple[int, int, int, int]  # (B, G, S, D)
    causal: bool
    dropout: Draw | None
    scale: float

    @property
    def head(self) -> int:
        """The head size as the kernels have it, a multiple of 16."""
        return -(-self.q_shape[3] // 16) * 16

    def sizes(self) -> tuple[Any, ...]:
        """n_batch, n_head, n_group, n_query, n_key, d, causal, scale."""
        n_batch, n_head, n_query, d = self.q_shape
        _, n_group, n_key, _ = self.key_shape
        sizes = (n_batch, n_head, n_group, n_query, n_key, d, self.causal)
        return (*(np.int32(size) for size in sizes), np.float32(self.scale))


class Attention(Dropout):
    """The kernels above, for heads of up to 128 numbers; float64, and masks for many queries, go on."""

    n_done: Array | None = None  # counters of attention_decode, all 0 between launches

    def attention(
        self, q: Array, key: Array, v: Array, causal: bool, mask: Array | None, dropout: Draw | None, scale: float
    ) -> tuple[Array, Array]:
        """softmax(scale q key^T) v for every head, and the logsumexp of every row."""
        few = q.shape[2] <= FEW_QUERIES and dropout is None and in_pieces(q)
        if not takes(q, key, v, scale) or not (mask is None or few):
            return super().attention(q, key, v, causal, mask, dropout, scale)
        q, key, v = (self._ready(x) for x in (q, key, v))
        y = self._heads_together(q)
        lse = self.xp.empty((*q.shape[:3], 1), np.float32)
        problem = Problem(q.shape, key.shape, causal, dropout, scale)
        if few:
            self._decode(problem, (q, key, v, y), mask, lse)
        elif on_tensor_cores(q):
            rows = 64 if problem.head > 96 else 128
            keys = 64 if problem.head <= 64 and dropout is None else 32
            self._start("attention_forward", problem, q, rows, rows + 4 * keys, (q, key, v, y), (lse,))
        else:
            self._start_float("attention_forward_float", problem, q, 3, (q, key, v, y), (lse,))
        return y, lse

    def attention_backward(
        self, dy: Array, q: Array, key: Array, v: Array, y: Array, lse: Array,
        causal: bool, mask: Array | None, dropout: Draw | None, scale: float,
    ) -> tuple[Array, Array, Array]:  # fmt: skip
        """dq, dkey, dv; side by side in one array where all three have one shape, as a projection's gradient needs."""
        if mask is not None or not (takes(q, key, v, scale) and claimed(q, dy, y)):
            return super().attention_backward(dy, q, key, v, y, lse, causal, mask, dropout, scale)
        dy, q, key, v, y = (self._ready(x) for x in (dy, q, key, v, y))
        dq, dkey, dv = self._gradients(q, key)
        for_query, for_key = (dy, q, key, v, y, dq), (dy, q, key, v, dkey, dv)
        problem = Problem(q.shape, key.shape, causal, dropout, scale)
        lse, delta = self.contiguous(lse), self.xp.empty(lse.shape, np.float32)
        if on_tensor_cores(q):
            shift = self.xp.empty(lse.shape, np.float32)
            rows = 64 if problem.head > 96 else 128
            self._start("attention_backward_query", problem, q, rows, 2 * rows + 128, for_query, (lse, shift, delta))
            rows = 64 if problem.head > 64 or dropout is not None else 128
            self._start("attention_backward_key", problem, key, rows, 2 * rows + 128, for_key, (shift, delta), 512)
        else:
            self._start_float("attention_backward_query_float", problem, q, 4, for_query, (lse, delta))
            self._start_float("attention_backward_key_float", problem, key, 4, for_key, (lse, delta))
        return dq, dkey, dv

    # --- launches -------------------------------------------------------------------------------

    def _start(
        self, kernel: str, problem: Problem, owner: Array, rows: int, tile_rows: int, arrays: tuple[Array, ...],
        floats: tuple[Array, ...], more_shared: int = 0,
    ) -> None:  # fmt: skip
        """A kernel on tensor cores: a block for every `rows` rows of owner's heads, its tiles of `tile_rows` in all."""
        source = "attention_forward" if kernel == "attention_forward" else "attention_backward"
        shared = tile_rows * (problem.head + 8) * 2 + more_shared
        self._launch(source, kernel, problem, owner, rows, THREADS, shared, (*map_strided(arrays), *floats))

    def _start_float(
        self, kernel: str, problem: Problem, owner: Array, n_tiles: int, arrays: tuple[Array, ...],
        floats: tuple[Array, ...],
    ) -> None:  # fmt: skip
        """A kernel of attention_float.cu, with so many tiles of operands and one of scores."""
        rows = 64 if problem.head <= 64 else 32
        shared = 4 * rows * (n_tiles * (problem.head + 4) + rows + 1)
        args = (*map_strided(arrays), *floats)
        self._launch("attention_float", kernel, problem, owner, rows, THREADS_FLOAT, shared, args)

    def _launch(
        self, source: str, kernel: str, problem: Problem, owner: Array, rows: int, threads: int, shared: int,
        args: tuple[Any, ...],
    ) -> None:  # fmt: skip
        n_blocks = owner.shape[0] * owner.shape[1] * -(-owner.shape[2] // rows)
        defines = {
            "T": c_type(owner.dtype), "HEAD": str(problem.head), "DROPOUT": str(int(problem.dropout is not None)),
        }  # fmt: skip
        args = (*args, *problem.sizes(), *self._dropout_arguments(problem.dropout))
        self.launcher.launch(source, kernel, (n_blocks,), (threads,), args, shared, defines)

    def _dropout_arguments(self, dropout: Draw | None) -> tuple[Any, ...]:
        """threshold, kept_scale, and the draw."""
        p, seed, stream, step = dropout or (0.0, 0, 0, 0)
        threshold, kept_scale = min(round(p * 2**32), 2**32 - 1), 1 / (1 - p) if p < 1 else 0.0
        return np.uint32(threshold), np.float32(kept_scale), *self._stream(seed, stream, step)

    def _decode(self, problem: Problem, arrays: tuple[Array, ...], mask: Array | None, lse: Array) -> None:
        """attention_decode: a block for every query and part of the keys."""
        n_batch, n_head, n_group, n_query, n_key, d, causal, scale = problem.sizes()
        rows = lse.size
        n_parts = min(-(-DECODE_BLOCKS // rows), -(-int(n_key) // DECODE_KEYS))
        part_size = -(-int(n_key) // n_parts)
        n_parts = -(-int(n_key) // part_size)
        parts = self.xp.empty((rows, n_parts, 2 + problem.head), np.float32) if n_parts > 1 else None
        if self.n_done is None or self.n_done.size < rows:
            self.n_done = self.xp.zeros(rows, np.uint32)
        seen = None if mask is None else self.xp.broadcast_to(mask, (*lse.shape[:3], int(n_key)))
        strides = (0, 0, 0, 0) if seen is None else seen.strides  # a bool is a byte
        args = (
            *map_strided(arrays), seen, *map(np.int64, strides), lse, parts, self.n_done, n_head, n_group, n_query,
            n_key, d, causal, scale, np.int32(part_size),
        )  # fmt: skip
        defines = {"T": c_type(arrays[0].dtype), "HEAD": str(problem.head)}
        self.launcher.launch(
            "attention_decode", "attention_decode", (rows, n_parts), (THREADS,), args, defines=defines
        )  # fmt: skip

    # --- arrays ---------------------------------------------------------------------------------

    def _ready(self, x: Array) -> Array:
        """x (B, H, T, D), or a copy of it where a kernel could not read its rows."""
        gaps = x.strides[3] != x.dtype.itemsize and x.shape[3] > 1
        aligned = not in_pieces(x) or all(n % 16 == 0 for n in (x.data.ptr, *x.strides[:3]))
        return self.xp.ascontiguousarray(x) if gaps or not aligned else x

    def _heads_together(self, q: Array) -> Array:
        """Room for a result of q's shape, a token's heads side by side in memory."""
        n_batch, n_head, n_query, d = q.shape
        return self.xp.empty((n_batch, n_query, n_head, d), q.dtype).transpose(0, 2, 1, 3)

    def _gradients(self, q: Array, key: Array) -> tuple[Array, Array, Array]:
        if q.shape == key.shape:
            n_batch, n_head, n_query, d = q.shape
            joined = self.xp.empty((n_batch, n_query, 3, n_head, d), q.dtype)
            dq, dkey, dv = (joined[:, :, i].transpose(0, 2, 1, 3) for i in range(3))
            return dq, dkey, dv
        return self._heads_together(q), self._heads_together(key), self._heads_together(key)


def takes(q: Array, key: Array, v: Array, scale: float) -> bool:
    """Whether there are kernels for these operands."""
    head = q.shape[3]
    return claimed(q, key, v) and q.dtype.name != "float64" and head == v.shape[3] <= LARGEST_HEAD and scale > 0


def in_pieces(x: Array) -> bool:
    """Whether a row is made of whole pieces of 16 bytes."""
    return bool(x.shape[3] * x.dtype.itemsize % 16 == 0)


def on_tensor_cores(q: Array) -> bool:
    """Whether the kernels on tensor cores have it, rather than those of attention_float.cu."""
    return q.dtype.itemsize == 2 and in_pieces(q)


def map_strided(arrays: tuple[Array, ...]) -> tuple[Any, ...]:
    """Every array (B, H, T, D) with its first three strides behind it, in numbers."""
    return tuple(
        part for x in arrays for part in (x, *(np.int64(stride // x.dtype.itemsize) for stride in x.strides[:3]))
    )
