"""Attention by blocks of query rows, every head on a thread of its own (Dao et al. 2022, arXiv:2205.14135).

A block meets only the keys that causality lets it see, to within a tile, and its scores stay in cache. Nothing of size
T x S is ever stored: backward makes the weights again from each row's logsumexp, and those that dropout took from the
same random numbers.
"""

from typing import Any

import numpy as np
from numba import types

from tensorgrad.backend.base import Array, Dropout
from tensorgrad.backend.numba.arrays import claimed
from tensorgrad.backend.numba.compile import compiled, prange
from tensorgrad.backend.numba.dropout import U, fill_bits, rule
from tensorgrad.backend.numba.few_queries import FEW, attend, n_seen
from tensorgrad.backend.numba.gemm import SMALL, Products
from tensorgrad.backend.numba.mathematics import ONE, exp_at_most_0
from tensorgrad.backend.numba.panels import panels_of
from tensorgrad.backend.numba.strided import array, packed_row, strided, with_packed_rows
from tensorgrad.backend.numba.sums import dot, largest, total
from tensorgrad.backend.numba.tile import ROWS, n_lanes, tile, whole

BLOCK = 64  # query rows


@compiled
def fill_rows(x: Any, y: Any, scale: Any) -> None:
    """y = scale x, with zeros in the rows that y (m, n) has more than x."""
    for i in range(x.shape[0]):
        xi, yi = packed_row(x[i]), y[i]
        for j in range(xi.size):
            yi[j] = xi[j] * scale
    y[x.shape[0] :] = 0


@compiled
def fill_kept(row: Any, number: int, words: Any, threshold: Any, scale: Any, step: Any, stream: Any, seed: Any) -> None:
    """row: what dropout multiplies the elements from `number` on with."""
    fill_bits(words, U(number // 4), step, stream, seed)
    first, zero = number % 4, ONE - ONE
    for j in range(row.size):
        row[j] = scale if words[first + j] >= threshold else zero


@compiled
def softmax_row(scores: Any, seen: int) -> Any:
    """scores, in whole vectors, -> e^(score - largest) of the first `seen`, 0 for the rest; 1 / sum, and logsumexp.

    What is not seen is worked on with the rest of its vector, and then put aside: loops with no odd end are faster.
    """
    top = largest(scores[:seen])
    zero = ONE - ONE
    for j in range(scores.size):
        weight = exp_at_most_0(scores[j] - top)
        scores[j] = weight if j < seen else zero
    size = total(scores)
    return ONE / size, top + np.log(size)


RANDOM = (types.uint64, types.float64, types.uint64, types.uint64, types.uint64)  # of `fill_kept`, from threshold on


@strided(lambda real: (array(real, 4),) * 4 + (array(real, 3), types.float64, types.boolean, types.boolean, *RANDOM))
def forward(
    q: Any, key: Any, v: Any, y: Any, lse: Any, scale: float, causal: bool,
    drop: bool, threshold: Any, kept_scale: float, step: Any, stream: Any, seed: Any,
) -> None:  # fmt: skip
    """y (B, H, T, D) and lse (B, H, T) from q (B, H, T, D) and key, v (B, G, S, D)."""
    n_batch, n_head, n_query, n_width = q.shape
    n_group, n_key = key.shape[1], key.shape[2]
    real = q.dtype.type
    for head in prange(n_batch * n_head):
        b, h = head // n_head, head % n_head
        g = h // (n_head // n_group)
        lanes = n_lanes(q)
        keys, values = panels_of(key[b, g].T), panels_of(v[b, g])
        queries = np.empty((BLOCK, n_width), q.dtype)
        scores = np.zeros((BLOCK, whole(n_key, lanes)), q.dtype)
        sums = np.empty((BLOCK, whole(v.shape[3], lanes)), q.dtype)
        kept, words = np.empty(n_key if drop else 0, q.dtype), np.empty(whole(n_key, 4) + 4 if drop else 0, np.uint32)
        per_row = np.empty(BLOCK, q.dtype)
        for start in range(0, n_query, BLOCK):
            n_rows = min(BLOCK, n_query - start)
            fill_rows(q[b, h, start : start + n_rows], queries, real(scale))
            for strip in range(0, n_rows, ROWS):
                end = min(strip + ROWS, n_rows)
                n_keys = n_seen(start + end - 1, n_query, n_key, causal)
                for p in range(whole(n_keys, lanes) // lanes):
                    tile(queries, strip, 0, n_width, keys, p, scores, strip, p * lanes, False)
                for i in range(strip, end):
                    row, seen = start + i, n_seen(start + i, n_query, n_key, causal)
                    weights = scores[i, : whole(n_keys, lanes)]
                    if seen == 0:
                        weights[:] = 0
                        per_row[i], lse[b, h, row] = 0, -np.inf
                        continue
                    per_row[i], lse[b, h, row] = softmax_row(weights, seen)
                    if drop:
                        number = (head * n_query + row) * n_key
                        fill_kept(kept[:seen], number, words[: whole(seen, 4) + 4], threshold, real(kept_scale),
                                  step, stream, seed)  # fmt: skip
                        for j in range(seen):
                            weights[j] *= kept[j]
                for p in range(len(values)):
                    tile(scores, strip, 0, n_keys, values, p, sums, strip, p * lanes, False)
            for i in range(n_rows):
                out, total_of_row = packed_row(y[b, h, start + i]), per_row[i]
                for d in range(out.size):
                    out[d] = sums[i, d] * total_of_row


@strided(
    lambda real: (array(real, 4),) * 5 + (array(real, 3),) + (array(real, 4),) * 3
    + (types.float64, types.boolean, types.boolean, *RANDOM)
)  # fmt: skip
def backward(
    dy: Any, q: Any, key: Any, v: Any, y: Any, lse: Any, dq: Any, dkey: Any, dv: Any, scale: float, causal: bool,
    drop: bool, threshold: Any, kept_scale: float, step: Any, stream: Any, seed: Any,
) -> None:  # fmt: skip
    """dq, dkey and dv. Heads that share a key head are done one after the other, as they add into its gradient.

    With weights p: dv = p^T dy; dp = dy v^T; ds = p (dp - sum(dy y)); dq = scale ds key; dkey = ds^T (scale q).
    """
    n_batch, n_head, n_query, n_width = q.shape
    n_group, n_key = key.shape[1], key.shape[2]
    shared = n_head // n_group
    real, zero = q.dtype.type, ONE - ONE
    for group in prange(n_batch * n_group):
        b, g = group // n_group, group % n_group
        lanes = n_lanes(q)
        keys, keys_across, values_across = (
            panels_of(key[b, g]),
            panels_of(key[b, g].T),
            panels_of(v[b, g].T),
        )
        queries, gradients = np.empty((BLOCK, n_width), q.dtype), np.empty((BLOCK, v.shape[3]), q.dtype)
        weights = np.zeros((BLOCK, whole(n_key, lanes)), q.dtype)
        dscores = np.zeros((BLOCK, whole(n_key, lanes)), q.dtype)
        dqueries = np.empty((BLOCK, whole(n_width, lanes)), q.dtype)
        dkeys = np.zeros((whole(n_key, ROWS), whole(n_width, lanes)), q.dtype)
        dvalues = np.zeros((whole(n_key, ROWS), whole(v.shape[3], lanes)), q.dtype)
        kept, words = np.empty(n_key if drop else 0, q.dtype), np.empty(whole(n_key, 4) + 4 if drop else 0, np.uint32)
        for h in range(g * shared, (g + 1) * shared):
            for start in range(0, n_query, BLOCK):
                n_rows = min(BLOCK, n_query - start)
                fill_rows(q[b, h, start : start + n_rows], queries, real(scale))
                fill_rows(dy[b, h, start : start + n_rows], gradients, ONE)
                for strip in range(0, n_rows, ROWS):
                    end = min(strip + ROWS, n_rows)
                    n_keys = n_seen(start + end - 1, n_query, n_key, causal)
                    for p in range(whole(n_keys, lanes) // lanes):
                        tile(queries, strip, 0, n_width, keys_across, p, weights, strip, p * lanes, False)
                        tile(gradients, strip, 0, v.shape[3], values_across, p, dscores, strip, p * lanes, False)
                    for i in range(strip, end):
                        row, seen = start + i, n_seen(start + i, n_query, n_key, causal)
                        w, ds = weights[i, : whole(n_keys, lanes)], dscores[i, : whole(n_keys, lanes)]
                        if seen == 0:
                            w[:] = 0
                            ds[:] = 0
                            continue
                        shift, common = lse[b, h, row], dot(gradients[i], packed_row(y[b, h, row]))
                        for j in range(w.size):
                            weight = exp_at_most_0(w[j] - shift)
                            w[j] = weight if j < seen else zero
                        if drop:
                            number = ((b * n_head + h) * n_query + row) * n_key
                            fill_kept(kept[:seen], number, words[: whole(seen, 4) + 4], threshold, real(kept_scale),
                                      step, stream, seed)  # fmt: skip
                            for j in range(seen):
                                ds[j] = w[j] * (ds[j] * kept[j] - common)
                                w[j] *= kept[j]
                        else:
                            for j in range(seen):
                                ds[j] = w[j] * (ds[j] - common)
                        ds[seen:] = 0
                    for p in range(len(keys)):
                        tile(dscores, strip, 0, n_keys, keys, p, dqueries, strip, p * lanes, False)
                for i in range(n_rows):
                    out = packed_row(dq[b, h, start + i])
                    for d in range(n_width):
                        out[d] = dqueries[i, d] * real(scale)
                n_keys = n_seen(start + n_rows - 1, n_query, n_key, causal)
                queries_by_panel, gradients_by_panel = panels_of(queries), panels_of(gradients)
                for strip in range(0, n_keys, ROWS):
                    first = max(0, strip - (n_key - n_query) - start) if causal else 0  # rows before see none of these
                    for p in range(len(queries_by_panel)):
                        tile(dscores.T, strip, first, n_rows, queries_by_panel, p, dkeys, strip, p * lanes, True)
                    for p in range(len(gradients_by_panel)):
                        tile(weights.T, strip, first, n_rows, gradients_by_panel, p, dvalues, strip, p * lanes, True)
        for i in range(n_key):
            out = packed_row(dkey[b, g, i])
            for d in range(out.size):
                out[d] = dkeys[i, d]
            out = packed_row(dv[b, g, i])
            for d in range(out.size):
                out[d] = dvalues[i, d]


class Attention(Products):
    """The kernels above, and for few queries theirs, for float32 and float64; masks of more are for plain NumPy."""

    def attention(
        self, q: Array, key: Array, v: Array, causal: bool, mask: Array | None, dropout: Dropout | None, scale: float
    ) -> tuple[Array, Array]:
        """softmax(scale q key^T) v for every head, and the logsumexp of every row."""
        if claimed(q, key, v) and q.shape[2] <= FEW and dropout is None and q.size and v.size:
            return attend(q, key, v, causal, mask, scale)
        if not claimed(q, key, v) or q.size * key.shape[2] < SMALL or not v.size or mask is not None:
            return super().attention(q, key, v, causal, mask, dropout, scale)
        n_batch, n_head, n_query, _ = q.shape
        y = np.empty((n_batch, n_query, n_head, v.shape[3]), q.dtype).transpose(0, 2, 1, 3)  # a token's heads together
        lse = np.empty((n_batch, n_head, n_query), q.dtype)
        forward(
            with_packed_rows(q),
            with_packed_rows(key),
            with_packed_rows(v),
            y,
            lse,
            scale,
            causal,
            dropout is not None,
            *rule(dropout),
        )
        return y, lse[..., None]

    def attention_backward(
        self, dy: Array, q: Array, key: Array, v: Array, y: Array, lse: Array,
        causal: bool, mask: Array | None, dropout: Dropout | None, scale: float,
    ) -> tuple[Array, Array, Array]:  # fmt: skip
        """dq, dkey, dv; side by side in one array where all three have one shape, as a projection's gradient needs."""
        takes = claimed(dy, q, key, v, y, lse) and q.size * key.shape[2] >= SMALL and v.size
        if not takes or mask is not None:
            return super().attention_backward(dy, q, key, v, y, lse, causal, mask, dropout, scale)
        dq, dkey, dv = _gradients(q, key, v)
        dy, q, key, v, y = map(with_packed_rows, (dy, q, key, v, y))
        backward(
            dy, q, key, v, y, lse[..., 0], dq, dkey, dv, scale, causal, dropout is not None, *rule(dropout)
        )  # fmt: skip
        return dq, dkey, dv


def _gradients(q: Array, key: Array, v: Array) -> tuple[Array, Array, Array]:
    n_batch, n_head, n_query, n_embd = q.shape
    if q.shape == key.shape == v.shape:
        joined = np.empty((n_batch, n_query, 3, n_head, n_embd), q.dtype)
        dq, dkey, dv = (joined[:, :, i].transpose(0, 2, 1, 3) for i in range(3))
        return dq, dkey, dv
    return np.empty(q.shape, q.dtype), np.empty(key.shape, q.dtype), np.empty(v.shape, q.dtype)
