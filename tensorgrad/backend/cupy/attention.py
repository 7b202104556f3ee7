"""Attention in blocks of keys and queries, and over a cache of keys; scores are never written to memory.

attention_forward.cu and attention_backward.cu compute half precision on tensor cores, attention_float.cu float32, and
attention_decode.cu a few queries over many keys. The kernels read operands with any strides, so q, k and v may be parts
of one projection and nothing is transposed.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from tensorgrad.backend.arrays import Array
from tensorgrad.backend.arrays import Dropout as DropoutOptions
from tensorgrad.backend.cupy.dropout import Dropout
from tensorgrad.backend.cupy.kernels import supported
from tensorgrad.backend.cupy.launcher import c_type

MAX_HEAD_SIZE = 128
MAX_DECODE_QUERIES = 4  # up to so many queries, attention_decode.cu is used
THREADS, THREADS_FLOAT = 128, 256
DECODE_BLOCKS = 264  # twice the multiprocessors of an H100; fixed, so that results do not depend on the GPU
MIN_KEYS_PER_PART = 64


@dataclass(frozen=True)
class Problem:
    """The arguments that all kernels of one call share."""

    q_shape: tuple[int, int, int, int]  # (B, H, T, D)
    key_shape: tuple[int, int, int, int]  # (B, G, S, D)
    causal: bool
    dropout: DropoutOptions | None
    scale: float

    @property
    def head(self) -> int:
        """The head size rounded up to a multiple of 16, as the kernels store it."""
        return -(-self.q_shape[3] // 16) * 16

    def sizes(self) -> tuple[Any, ...]:
        """n_batch, n_head, n_group, n_query, n_key, d, causal, scale."""
        n_batch, n_head, n_query, d = self.q_shape
        _, n_group, n_key, _ = self.key_shape
        sizes = (n_batch, n_head, n_group, n_query, n_key, d, self.causal)
        return (*(np.int32(size) for size in sizes), np.float32(self.scale))


class Attention(Dropout):
    """The kernels above, for heads of up to 128; `math.py` computes float64, and masks for many queries."""

    n_done: Array | None = None  # counters of attention_decode, all 0 between launches

    def attention(
        self, q: Array, key: Array, v: Array,
        causal: bool, mask: Array | None, dropout: DropoutOptions | None, scale: float,
    ) -> tuple[Array, Array]:  # fmt: skip
        decode = q.shape[2] <= MAX_DECODE_QUERIES and dropout is None and rows_of_16_bytes(q)
        if not has_kernel(q, key, v, scale) or not (mask is None or decode):
            return super().attention(q, key, v, causal, mask, dropout, scale)
        q, key, v = (self._aligned(x) for x in (q, key, v))
        y = self._adjacent_heads(q)
        lse = self.xp.empty((*q.shape[:3], 1), np.float32)
        problem = Problem(q.shape, key.shape, causal, dropout, scale)
        if decode:
            self._decode(problem, (q, key, v, y), mask, lse)
        elif uses_tensor_cores(q):
            rows = 64 if problem.head > 96 else 128
            keys = 64 if problem.head <= 64 and dropout is None else 32
            self._start("attention_forward", problem, q, rows, rows + 4 * keys, (q, key, v, y), (lse,))
        else:
            self._start_float("attention_forward_float", problem, q, 3, (q, key, v, y), (lse,))
        return y, lse

    def attention_backward(
        self, dy: Array, q: Array, key: Array, v: Array, y: Array, lse: Array,
        causal: bool, mask: Array | None, dropout: DropoutOptions | None, scale: float,
    ) -> tuple[Array, Array, Array]:  # fmt: skip
        """dq, dkey, dv; parts of one array if they have one shape, as the gradient of a joint projection needs."""
        if mask is not None or not (has_kernel(q, key, v, scale) and supported(q, dy, y)):
            return super().attention_backward(dy, q, key, v, y, lse, causal, mask, dropout, scale)
        dy, q, key, v, y = (self._aligned(x) for x in (dy, q, key, v, y))
        dq, dkey, dv = self._gradients(q, key)
        for_query, for_key = (dy, q, key, v, y, dq), (dy, q, key, v, dkey, dv)
        problem = Problem(q.shape, key.shape, causal, dropout, scale)
        lse, delta = self.contiguous(lse), self.xp.empty(lse.shape, np.float32)
        if uses_tensor_cores(q):
            shift = self.xp.empty(lse.shape, np.float32)
            rows = 64 if problem.head > 96 else 128
            self._start("attention_backward_query", problem, q, rows, 2 * rows + 128, for_query, (lse, shift, delta))
            rows = 64 if problem.head > 64 or dropout is not None else 128
            self._start("attention_backward_key", problem, key, rows, 2 * rows + 128, for_key, (shift, delta), 512)
        else:
            self._start_float("attention_backward_query_float", problem, q, 4, for_query, (lse, delta))
            self._start_float("attention_backward_key_float", problem, key, 4, for_key, (lse, delta))
        return dq, dkey, dv

    def _start(
        self, kernel: str, problem: Problem, owner: Array, rows: int, tile_rows: int, arrays: tuple[Array, ...],
        floats: tuple[Array, ...], more_shared: int = 0,
    ) -> None:  # fmt: skip
        """Launch a kernel for tensor cores: a block per `rows` rows of owner's heads, with tiles of tile_rows."""
        source = "attention_forward" if kernel == "attention_forward" else "attention_backward"
        shared = tile_rows * (problem.head + 8) * 2 + more_shared
        self._launch(source, kernel, problem, owner, rows, THREADS, shared, (*with_strides(arrays), *floats))

    def _start_float(
        self, kernel: str, problem: Problem, owner: Array, n_tiles: int, arrays: tuple[Array, ...],
        floats: tuple[Array, ...],
    ) -> None:  # fmt: skip
        """Launch a kernel of attention_float.cu, with n_tiles tiles of operands and one of scores."""
        rows = 64 if problem.head <= 64 else 32
        shared = 4 * rows * (n_tiles * (problem.head + 4) + rows + 1)
        args = (*with_strides(arrays), *floats)
        self._launch("attention_float", kernel, problem, owner, rows, THREADS_FLOAT, shared, args)

    def _launch(
        self, source: str, kernel: str, problem: Problem, owner: Array, rows: int, threads: int, shared: int,
        args: tuple[Any, ...],
    ) -> None:  # fmt: skip
        n_blocks = owner.shape[0] * owner.shape[1] * -(-owner.shape[2] // rows)
        dropout = str(int(problem.dropout is not None))
        defines = {"T": c_type(owner.dtype), "HEAD": str(problem.head), "DROPOUT": dropout}
        args = (*args, *problem.sizes(), *self._dropout_arguments(problem.dropout))
        self.launcher.launch(source, kernel, (n_blocks,), (threads,), args, shared, defines)

    def _dropout_arguments(self, dropout: DropoutOptions | None) -> tuple[Any, ...]:
        """threshold, kept_scale, and the counter and key of the random bits."""
        p, seed, stream, step = dropout or (0.0, 0, 0, 0)
        threshold, kept_scale = min(round(p * 2**32), 2**32 - 1), 1 / (1 - p) if p < 1 else 0.0
        return np.uint32(threshold), np.float32(kept_scale), *self._stream(seed, stream, step)

    def _decode(self, problem: Problem, arrays: tuple[Array, ...], mask: Array | None, lse: Array) -> None:
        """Launch attention_decode: a block for every query and every part of the keys."""
        n_batch, n_head, n_group, n_query, n_key, d, causal, scale = problem.sizes()
        rows = lse.size
        n_parts = min(-(-DECODE_BLOCKS // rows), -(-int(n_key) // MIN_KEYS_PER_PART))
        part_size = -(-int(n_key) // n_parts)
        n_parts = -(-int(n_key) // part_size)
        parts = self.xp.empty((rows, n_parts, 2 + problem.head), np.float32) if n_parts > 1 else None
        if self.n_done is None or self.n_done.size < rows:
            self.n_done = self.xp.zeros(rows, np.uint32)
        allowed = None if mask is None else self.xp.broadcast_to(mask, (*lse.shape[:3], int(n_key)))
        strides = (0, 0, 0, 0) if allowed is None else allowed.strides  # a bool is a byte
        args = (
            *with_strides(arrays), allowed, *map(np.int64, strides), lse, parts, self.n_done, n_head, n_group, n_query,
            n_key, d, causal, scale, np.int32(part_size),
        )  # fmt: skip
        defines = {"T": c_type(arrays[0].dtype), "HEAD": str(problem.head)}
        self.launcher.launch("attention_decode", "attention_decode", (rows, n_parts), (THREADS,), args, defines=defines)

    def _aligned(self, x: Array) -> Array:
        """x (B, H, T, D), or a contiguous copy where the kernels cannot read its rows."""
        gaps = x.strides[3] != x.dtype.itemsize and x.shape[3] > 1
        aligned = not rows_of_16_bytes(x) or all(n % 16 == 0 for n in (x.data.ptr, *x.strides[:3]))
        return self.xp.ascontiguousarray(x) if gaps or not aligned else x

    def _adjacent_heads(self, q: Array) -> Array:
        """An uninitialised array of q's shape, with the heads of a token adjacent in memory."""
        n_batch, n_head, n_query, d = q.shape
        return self.xp.empty((n_batch, n_query, n_head, d), q.dtype).transpose(0, 2, 1, 3)

    def _gradients(self, q: Array, key: Array) -> tuple[Array, Array, Array]:
        if q.shape == key.shape:
            n_batch, n_head, n_query, d = q.shape
            joined = self.xp.empty((n_batch, n_query, 3, n_head, d), q.dtype)
            dq, dkey, dv = (joined[:, :, i].transpose(0, 2, 1, 3) for i in range(3))
            return dq, dkey, dv
        return self._adjacent_heads(q), self._adjacent_heads(key), self._adjacent_heads(key)


def has_kernel(q: Array, key: Array, v: Array, scale: float) -> bool:
    """Whether the kernels support these operands."""
    head = q.shape[3]
    return supported(q, key, v) and q.dtype.name != "float64" and head == v.shape[3] <= MAX_HEAD_SIZE and scale > 0


def rows_of_16_bytes(x: Array) -> bool:
    """Whether the size of a row is a multiple of 16 bytes."""
    return bool(x.shape[3] * x.dtype.itemsize % 16 == 0)


def uses_tensor_cores(q: Array) -> bool:
    """Whether the kernels for tensor cores are used, rather than those of attention_float.cu."""
    return q.dtype.itemsize == 2 and rows_of_16_bytes(q)


def with_strides(arrays: tuple[Array, ...]) -> tuple[Any, ...]:
    """Every array (B, H, T, D) followed by its first three strides, in elements."""
    return tuple(
        part for x in arrays for part in (x, *(np.int64(stride // x.dtype.itemsize) for stride in x.strides[:3]))
    )
