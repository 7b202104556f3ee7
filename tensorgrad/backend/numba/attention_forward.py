"""Attention, forward: as many queries at a time as a tile has columns, of a head that one thread has to itself.

The scores (keys, queries) are made by tiles of the keys' rows and a panel of queries across. A query's are a column, so
the softmax of all of them goes down the rows, and weights in the form of a panel are what the product with the values
needs. Of what causality hides no more is computed than shares a tile with what it shows.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import types

from tensorgrad.backend.numba.columns import (
    largest_of_columns,
    multiply_columns,
    subtract_from_columns,
    total_of_columns,
)
from tensorgrad.backend.numba.compile import apart, compiled, prange
from tensorgrad.backend.numba.dropout import DRAW, fill_kept, words_for
from tensorgrad.backend.numba.few_queries import n_seen
from tensorgrad.backend.numba.mathematics import NEVER, ONE, ZERO, exp_at_most_0
from tensorgrad.backend.numba.panels import SPARE, fill_across, fill_panels, fill_rows, matrix
from tensorgrad.backend.numba.strided import array, as_panels, as_row, strided
from tensorgrad.backend.numba.tile import ROWS, multiply_across, n_lanes, tile, whole


class ForwardRoom(NamedTuple):
    """Where a thread keeps what belongs to a head, and in the lower half to the queries of a tile."""

    keys: Any  # (S, D), times the scale
    values: Any  # (S, D)
    queries: Any  # (D, lanes)
    scores: Any  # (S, lanes)
    y: Any  # (D, lanes)
    top: Any  # (lanes): the largest score
    size: Any  # (lanes): the sum of the weights
    kept: Any  # (S), for dropout
    words: Any


@apart
def forward_room(q: Any, v: Any, drop: bool) -> ForwardRoom:
    """For one head's q (T, D) and v (S, D)."""
    lanes, n_keys = n_lanes(q), whole(len(v), ROWS)
    width, v_width = whole(q.shape[1], ROWS), whole(v.shape[1], ROWS)
    keys, values = matrix(n_keys, width + SPARE, q), matrix(n_keys, v_width + SPARE, q)
    queries, scores, y = matrix(q.shape[1], lanes, q), matrix(n_keys, lanes, q), matrix(v_width, lanes, q)
    n_drawn = len(v) if drop else 0
    return ForwardRoom(keys, values, queries, scores, y, np.empty(lanes, q.dtype), np.empty(lanes, q.dtype),
                       np.empty(n_drawn, q.dtype), words_for(n_drawn))  # fmt: skip


@compiled
def hide(strip: Any, lanes: int, first: int) -> None:
    """-inf for the scores (key i, query j) of a strip where j < first + i: the keys that are later than a query."""
    for t in range(strip.size):
        strip[t] = strip[t] if t % lanes >= first + t // lanes else NEVER


@apart
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


@apart
def attend_head(
    q: Any, key: Any, v: Any, y: Any, lse: Any, scale: float, causal: bool, drop: bool, draw: Any, head: int, room: Any
) -> None:
    """y (T, D) and lse (T) of one head, from q (T, D) and key, v (S, D)."""
    keys, values, queries, scores, sums, top, size, kept, words = room
    (n_query, n_width), (n_key, v_width), lanes = q.shape, v.shape, n_lanes(q)
    query_panel, weights = as_panels(queries, 1), as_panels(scores, 1)
    fill_rows(key, keys, q.dtype.type(scale))
    fill_rows(v, values, ONE)
    for start in range(0, n_query, lanes):
        n = min(lanes, n_query - start)
        n_keys = n_seen(start + n - 1, n_query, n_key, causal)
        fill_panels(q[start : start + n].T, query_panel)
        for row in range(0, n_keys, ROWS):
            tile(keys, row, 0, n_width, query_panel, 0, scores, row, 0, False)
            if causal and row + ROWS > n_seen(start, n_query, n_key, causal):
                hide(as_row(scores, row, ROWS), lanes, row - start - (n_key - n_query))
        softmax_columns(scores, n_keys, top, size)
        for j in range(n):
            lse[start + j] = top[j] + np.log(size[j]) if size[j] != 0 else NEVER
        if drop:
            for j in range(n):
                seen, number = n_seen(start + j, n_query, n_key, causal), (head * n_query + start + j) * n_key
                fill_kept(kept[:seen], number, words, draw)
                for i in range(seen):
                    scores[i, j] *= kept[i]
        multiply_across(values, v_width, 0, n_keys, weights, sums, 0, False)
        for j in range(size.size):
            size[j] = ONE / size[j] if size[j] > 0 else ZERO
        multiply_columns(sums, v_width, size)
        fill_across(sums.T[:n, :v_width], y[start : start + n])


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
        room = forward_room(q[0, 0], v[0, 0], drop)
        for head in range(n_heads * part // parts, n_heads * (part + 1) // parts):
            b, h = head // n_head, head % n_head
            g = h // (n_head // key.shape[1])
            attend_head(q[b, h], key[b, g], v[b, g], y[b, h], lse[b, h], scale, causal, drop, draw, head, room)
