"""Attention, forward: as many queries at a time as a tile has columns, of a head that one thread has to itself.

The scores (keys, queries) are made by tiles of the keys' rows and a panel of queries across. A query's are a column, so
the softmax of all of them goes down the rows, and weights in the form of a panel are what the product with the values
needs. Of what causality hides no more is computed than shares a tile with what it shows.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import types

from tensorgrad.backend.numba.attention_columns import (
    largest_of_columns,
    multiply_columns,
    subtract_from_columns,
    total_of_columns,
)
from tensorgrad.backend.numba.attention_decode import n_seen
from tensorgrad.backend.numba.compile import inline, noinline, prange
from tensorgrad.backend.numba.dropout import DRAW, fill_kept, words_for
from tensorgrad.backend.numba.mathematics import NEVER, ONE, ZERO, exp_at_most_0
from tensorgrad.backend.numba.microkernel import MR, microkernel, microkernel_transposed, nr_of, round_up
from tensorgrad.backend.numba.pack import ROW_PADDING, matrix, pack_panels, pack_rows, pack_transposed
from tensorgrad.backend.numba.strided import array, as_panels, as_row, strided


class ForwardWorkspace(NamedTuple):
    """Where a thread keeps what belongs to a head, and in the lower half to the queries of a tile."""

    keys: Any  # (S, D), times the scale
    values: Any  # (S, D)
    queries: Any  # (D, nr)
    scores: Any  # (S, nr)
    y: Any  # (D, nr)
    top: Any  # (nr): the largest score
    size: Any  # (nr): the sum of the weights
    kept: Any  # (S), for dropout
    words: Any


@noinline
def forward_workspace(q: Any, v: Any, drop: bool) -> ForwardWorkspace:
    """For one head's q (T, D) and v (S, D)."""
    nr, n_keys = nr_of(q), round_up(len(v), MR)
    width, v_width = round_up(q.shape[1], MR), round_up(v.shape[1], MR)
    keys, values = matrix(n_keys, width + ROW_PADDING, q), matrix(n_keys, v_width + ROW_PADDING, q)
    queries, scores, y = matrix(q.shape[1], nr, q), matrix(n_keys, nr, q), matrix(v_width, nr, q)
    n_drawn = len(v) if drop else 0
    return ForwardWorkspace(keys, values, queries, scores, y, np.empty(nr, q.dtype), np.empty(nr, q.dtype),
                       np.empty(n_drawn, q.dtype), words_for(n_drawn))  # fmt: skip


@inline
def mask_later_keys(strip: Any, nr: int, first: int) -> None:
    """-inf for the scores (key i, query j) of a strip where j < first + i: the keys that are later than a query."""
    for t in range(strip.size):
        strip[t] = strip[t] if t % nr >= first + t // nr else NEVER


@noinline
def softmax_columns(scores: Any, n: int, top: Any, size: Any) -> None:
    """scores[:n] -> e^(score - largest of the column); the largest, and the sum of the column."""
    largest_of_columns(scores, n, top)
    for j in range(top.size):
        top[j] = top[j] if top[j] > NEVER else ZERO  # nothing is seen: weights and sum will be 0
    subtract_from_columns(scores, n, top)
    weights = as_row(scores, 0, n)
    for t in range(weights.size):
        weights[t] = exp_at_most_0(weights[t])
    total_of_columns(scores, n, size)


@noinline
def attend_head(
    q: Any, key: Any, v: Any, y: Any, lse: Any, scale: float, causal: bool, drop: bool, draw: Any, head: int,
    workspace: Any,
) -> None:  # fmt: skip
    """y (T, D) and lse (T) of one head, from q (T, D) and key, v (S, D)."""
    keys, values, queries, scores, sums, top, size, kept, words = workspace
    (n_query, n_width), (n_key, v_width), nr = q.shape, v.shape, nr_of(q)
    query_panel, weights = as_panels(queries, 1), as_panels(scores, 1)
    pack_rows(key, keys, q.dtype.type(scale))
    pack_rows(v, values, ONE)
    for start in range(0, n_query, nr):
        n = min(nr, n_query - start)
        n_keys = n_seen(start + n - 1, n_query, n_key, causal)
        pack_panels(q[start : start + n].T, query_panel)
        for row in range(0, n_keys, MR):
            microkernel(keys, row, 0, n_width, query_panel, 0, scores, row, 0, False)
            if causal and row + MR > n_seen(start, n_query, n_key, causal):
                mask_later_keys(as_row(scores, row, MR), nr, row - start - (n_key - n_query))
        softmax_columns(scores, n_keys, top, size)
        for j in range(n):
            lse[start + j] = top[j] + np.log(size[j]) if size[j] != 0 else NEVER
        if drop:
            for j in range(n):
                seen, number = n_seen(start + j, n_query, n_key, causal), (head * n_query + start + j) * n_key
                fill_kept(kept[:seen], number, words, draw)
                for i in range(seen):
                    scores[i, j] *= kept[i]
        microkernel_transposed(values, v_width, 0, n_keys, weights, sums, 0, False)
        for j in range(size.size):
            size[j] = ONE / size[j] if size[j] > 0 else ZERO
        multiply_columns(sums, v_width, size)
        pack_transposed(sums.T[:n, :v_width], y[start : start + n])


@strided(
    lambda real: (
        (array(real, 4),) * 4 + (array(real, 3), types.float64, types.boolean, types.boolean, DRAW, types.int64)
    )
)
def forward(
    q: Any, key: Any, v: Any, y: Any, lse: Any, scale: float, causal: bool, drop: bool, draw: Any, parts: int
) -> None:
    """y (B, H, T, D) and lse (B, H, T) from q (B, H, T, D) and key, v (B, G, S, D)."""
    n_head, n_heads = q.shape[1], q.shape[0] * q.shape[1]
    for part in prange(parts):
        workspace = forward_workspace(q[0, 0], v[0, 0], drop)
        for head in range(n_heads * part // parts, n_heads * (part + 1) // parts):
            b, h = head // n_head, head % n_head
            g = h // (n_head // key.shape[1])
            attend_head(q[b, h], key[b, g], v[b, g], y[b, h], lse[b, h], scale, causal, drop, draw, head, workspace)
