"""Attention by blocks of query rows, every head on a thread of its own (Dao et al. 2022, arXiv:2205.14135).

A block meets only the keys that causality lets it see and its scores stay in cache. Nothing of size T x S is ever
stored: backward makes the weights again from each row's logsumexp.
"""

from typing import Any

import numpy as np
from numba import types

from tensorgrad.backend.base import Array, Dropout
from tensorgrad.backend.numba.compile import compiled, prange
from tensorgrad.backend.numba.gemm import SMALL, Products, gemm, readable
from tensorgrad.backend.numba.mathematics import ONE, exp, largest
from tensorgrad.backend.numba.strided import array, strided
from tensorgrad.backend.numba.sums import dot, total

BLOCK = 64  # query rows


@compiled
def n_seen(row: int, n_query: int, n_key: int, causal: bool) -> int:
    """How many keys a query row may see: the last row sees all."""
    return min(n_key, max(0, row + 1 + n_key - n_query)) if causal else n_key


@strided(lambda real: (array(real, 4),) * 4 + (array(real, 3), types.float64, types.boolean))
def forward(q: Any, key: Any, v: Any, y: Any, lse: Any, scale: float, causal: bool) -> None:
    """y (B, H, T, D) and lse (B, H, T) from q (B, H, T, D) and key, v (B, G, S, D)."""
    n_batch, n_head, n_query, _ = q.shape
    n_group, n_key = key.shape[1], key.shape[2]
    for head in prange(n_batch * n_head):
        b, h = head // n_head, head % n_head
        g = h // (n_head // n_group)
        scores = np.empty((min(BLOCK, n_query), n_key), q.dtype)
        for start in range(0, n_query, BLOCK):
            stop = min(start + BLOCK, n_query)
            width = n_seen(stop - 1, n_query, n_key, causal)
            if width == 0:
                y[b, h, start:stop] = 0
                lse[b, h, start:stop] = -np.inf
                continue
            p = scores[: stop - start, :width]
            gemm(q[b, h, start:stop], key[b, g, :width].T, scale, 0.0, p)
            for i in range(stop - start):
                seen = n_seen(start + i, n_query, n_key, causal)
                p[i, seen:] = 0
                if seen == 0:
                    lse[b, h, start + i] = -np.inf
                    continue
                p_row = scores[i, :seen]
                top = largest(p_row)
                for j in range(seen):
                    p_row[j] = exp(p_row[j] - top)
                size = total(p_row)
                for j in range(seen):
                    p_row[j] *= ONE / size
                lse[b, h, start + i] = top + np.log(size)
            gemm(p, v[b, g, :width], 1.0, 0.0, y[b, h, start:stop])


@strided(
    lambda real: (array(real, 4),) * 4 + (array(real, 3),) + (array(real, 4),) * 3 + (types.float64, types.boolean)
)
def backward(
    dy: Any, q: Any, key: Any, v: Any, lse: Any, dq: Any, dkey: Any, dv: Any, scale: float, causal: bool
) -> None:
    """dq, dkey and dv. Heads that share a key head are done one after the other, as they add into its gradient."""
    n_batch, n_head, n_query, _ = q.shape
    n_group, n_key = key.shape[1], key.shape[2]
    shared = n_head // n_group
    for group in prange(n_batch * n_group):
        b, g = group // n_group, group % n_group
        weights = np.empty((min(BLOCK, n_query), n_key), q.dtype)
        gradients = np.empty((min(BLOCK, n_query), n_key), q.dtype)
        dkey[b, g] = 0
        dv[b, g] = 0
        for h in range(g * shared, (g + 1) * shared):
            for start in range(0, n_query, BLOCK):
                stop = min(start + BLOCK, n_query)
                width = n_seen(stop - 1, n_query, n_key, causal)
                if width == 0:
                    dq[b, h, start:stop] = 0
                    continue
                p, ds = weights[: stop - start, :width], gradients[: stop - start, :width]
                gemm(q[b, h, start:stop], key[b, g, :width].T, scale, 0.0, p)
                gemm(dy[b, h, start:stop], v[b, g, :width].T, 1.0, 0.0, ds)
                for i in range(stop - start):
                    row = start + i
                    seen = n_seen(row, n_query, n_key, causal)
                    p_row, ds_row = weights[i, :seen], gradients[i, :seen]
                    for j in range(seen):
                        p_row[j] = exp(p_row[j] - lse[b, h, row])
                    common = dot(p_row, ds_row)
                    for j in range(seen):
                        ds_row[j] = p_row[j] * (ds_row[j] - common)
                    p[i, seen:] = 0
                    ds[i, seen:] = 0
                gemm(p.T, dy[b, h, start:stop], 1.0, 1.0, dv[b, g, :width])
                gemm(ds.T, q[b, h, start:stop], scale, 1.0, dkey[b, g, :width])
                gemm(ds, key[b, g, :width], scale, 0.0, dq[b, h, start:stop])


class Attention(Products):
    """The kernels above, for float32 and float64; masks and dropout are left to the plain mathematics."""

    def attention(
        self, q: Array, key: Array, v: Array, causal: bool, mask: Array | None, dropout: Dropout | None, scale: float
    ) -> tuple[Array, Array]:
        """softmax(scale q key^T) v for every head, and the logsumexp of every row."""
        if not self._takes(q, key, v) or q.size * key.shape[2] < SMALL or mask is not None or dropout is not None:
            return super().attention(q, key, v, causal, mask, dropout, scale)
        n_batch, n_head, n_query, _ = q.shape
        y = np.empty((n_batch, n_query, n_head, v.shape[3]), q.dtype).transpose(0, 2, 1, 3)  # a token's heads together
        lse = np.empty((n_batch, n_head, n_query), q.dtype)
        forward(readable(q), readable(key), readable(v), y, lse, scale, causal)
        return y, lse[..., None]

    def attention_backward(
        self, dy: Array, q: Array, key: Array, v: Array, y: Array, lse: Array,
        causal: bool, mask: Array | None, dropout: Dropout | None, scale: float,
    ) -> tuple[Array, Array, Array]:  # fmt: skip
        """dq, dkey, dv; side by side in one array where all three have one shape, as a projection's gradient needs."""
        takes = self._takes(dy, q, key, v, y) and q.size * key.shape[2] >= SMALL
        if not takes or mask is not None or dropout is not None:
            return super().attention_backward(dy, q, key, v, y, lse, causal, mask, dropout, scale)
        dq, dkey, dv = _gradients(q, key, v)
        backward(readable(dy), readable(q), readable(key), readable(v), lse[..., 0], dq, dkey, dv, scale, causal)
        return dq, dkey, dv


def _gradients(q: Array, key: Array, v: Array) -> tuple[Array, Array, Array]:
    n_batch, n_head, n_query, n_embd = q.shape
    if q.shape == key.shape == v.shape:
        joined = np.empty((n_batch, n_query, 3, n_head, n_embd), q.dtype)
        dq, dkey, dv = (joined[:, :, i].transpose(0, 2, 1, 3) for i in range(3))
        return dq, dkey, dv
    return np.empty(q.shape, q.dtype), np.empty(key.shape, q.dtype), np.empty(v.shape, q.dtype)
