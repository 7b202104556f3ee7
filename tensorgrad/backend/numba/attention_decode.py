"""Attention of a few queries, as in generating text: keys and values are read once and in place, without packing."""

from typing import Any

import numpy as np
from numba import types

from tensorgrad.backend.arrays import Array
from tensorgrad.backend.numba.compile import inline
from tensorgrad.backend.numba.mathematics import ONE, exp
from tensorgrad.backend.numba.parallel import ALONE, prange
from tensorgrad.backend.numba.reductions import dot, largest, total
from tensorgrad.backend.numba.strided import array, contiguous_row, strided, with_contiguous_rows

MAX_DECODE_QUERIES = 4  # with more, packing the keys for the microkernel pays off


@inline
def n_seen(row: int, n_query: int, n_key: int, causal: bool) -> int:
    """How many keys query `row` may attend to; with a causal mask, the last query attends to all."""
    return min(n_key, max(0, row + 1 + n_key - n_query)) if causal else n_key


@inline
def mask_scores(scores: Any, mask: Any, b: int, h: int, row: int) -> None:
    """scores = -inf where the mask (B, H, T, S) is False; axes of length 1 broadcast."""
    allowed = mask[min(b, mask.shape[0] - 1), min(h, mask.shape[1] - 1), min(row, mask.shape[2] - 1)]
    for s in range(scores.size):
        if not allowed[min(s, allowed.size - 1)]:
            scores[s] = -np.inf


@strided(lambda real: (array(real, 4),) * 4 + (array(real, 3), array(types.boolean, 4), types.float64, types.boolean))
def decode(
    q: Any, key: Any, v: Any, y: Any, lse: Any, mask: Any, scale: float, causal: bool, thread: Any = ALONE
) -> None:
    """y (B, H, T, D) and lse (B, H, T) from q (B, H, T, D) and key, v (B, G, S, D); an empty mask masks nothing."""
    n_batch, n_head, n_query, n_width = q.shape
    n_group, n_key = key.shape[1], key.shape[2]
    real = q.dtype.type
    for head in prange(n_batch * n_head, thread):
        b, h = head // n_head, head % n_head
        g = h // (n_head // n_group)
        query, weights, sums = np.empty(n_width, q.dtype), np.empty(n_key, q.dtype), np.empty(v.shape[3], q.dtype)
        for row in range(n_query):
            for d in range(n_width):
                query[d] = q[b, h, row, d] * real(scale)
            seen = weights[: n_seen(row, n_query, n_key, causal)]
            for s in range(seen.size):
                seen[s] = dot(query, contiguous_row(key[b, g, s]))
            if mask.size > 0:
                mask_scores(seen, mask, b, h, row)
            top = largest(seen) if seen.size > 0 else real(-np.inf)
            sums[:] = 0
            lse[b, h, row], per_row = -np.inf, ONE
            if top > -np.inf or top != top:  # otherwise all keys are masked
                for s in range(seen.size):
                    seen[s] = exp(seen[s] - top)
                size = total(seen)
                lse[b, h, row], per_row = top + np.log(size), ONE / size
                for s in range(seen.size):
                    weight, value = seen[s], contiguous_row(v[b, g, s])
                    for d in range(sums.size):
                        sums[d] += weight * value[d]
            out = contiguous_row(y[b, h, row])
            for d in range(sums.size):
                out[d] = sums[d] * per_row


def attend(q: Array, key: Array, v: Array, causal: bool, mask: Array | None, scale: float) -> tuple[Array, Array]:
    """softmax(scale q key^T) v for every head, and the logsumexp of every row, (B, H, T, 1)."""
    n_batch, n_head, n_query, _ = q.shape
    y = np.empty((n_batch, n_query, n_head, v.shape[3]), q.dtype).transpose(0, 2, 1, 3)  # a token's heads together
    lse = np.empty((n_batch, n_head, n_query), q.dtype)
    mask = np.empty((0, 0, 0, 0), bool) if mask is None else mask.reshape((1,) * (4 - mask.ndim) + mask.shape)
    q, key, v = with_contiguous_rows(q), with_contiguous_rows(key), with_contiguous_rows(v)
    decode(q, key, v, y, lse, mask if mask.flags.writeable else mask.copy(), scale, causal)
    return y, lse[..., None]
