"""Attention, forward: NR queries of one head at a time; every head is computed by one thread.

The scores of NR queries are computed transposed, as a matrix (keys, queries): MR rows of keys times one packed panel of
queries. So the scores of a query are a column, softmax goes down the columns, and the matrix of weights is already a
packed panel for the product with the values. Scores that a causal mask hides are computed only where they share a call
of the microkernel with visible ones.
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
from tensorgrad.backend.numba.compile import inline, noinline
from tensorgrad.backend.numba.dropout import DRAW, fill_kept, words_for
from tensorgrad.backend.numba.mathematics import NEVER, ONE, ZERO, exp_at_most_0
from tensorgrad.backend.numba.microkernel import MR, microkernel, microkernel_transposed, nr_of, round_up
from tensorgrad.backend.numba.pack import matrix, pack_panels, pack_rows, pack_transposed, padded_matrix
from tensorgrad.backend.numba.parallel import ALONE, prange
from tensorgrad.backend.numba.strided import array, as_panels, as_row, strided


class ForwardWorkspace(NamedTuple):
    """The arrays that a thread reuses: keys and values for each head, the others for each NR queries."""

    keys: Any  # (S, D), multiplied by the scale
    values: Any  # (S, D)
    queries: Any  # (D, nr)
    scores: Any  # (S, nr)
    y: Any  # (D, nr)
    top: Any  # (nr): the largest score of each query
    size: Any  # (nr): the sum of the weights of each query
    kept: Any  # (S), for dropout
    words: Any


@noinline
def forward_workspace(q: Any, v: Any, drop: bool) -> ForwardWorkspace:
    """A workspace for heads with q (T, D) and v (S, D)."""
    nr, n_keys, v_width = nr_of(q), round_up(len(v), MR), round_up(v.shape[1], MR)
    keys, values = padded_matrix(n_keys, q.shape[1], q), padded_matrix(n_keys, v.shape[1], q)
    queries, scores, y = matrix(q.shape[1], nr, q), matrix(n_keys, nr, q), matrix(v_width, nr, q)
    n_drawn = len(v) if drop else 0
    return ForwardWorkspace(keys, values, queries, scores, y, np.empty(nr, q.dtype), np.empty(nr, q.dtype),
                       np.empty(n_drawn, q.dtype), words_for(n_drawn))  # fmt: skip


@inline
def mask_later_keys(scores: Any, nr: int, first: int) -> None:
    """scores[i, j] = -inf where j < first + i: key i is later than query j. scores (MR, nr) come as one row."""
    for t in range(scores.size):
        scores[t] = scores[t] if t % nr >= first + t // nr else NEVER


@noinline
def softmax_columns(scores: Any, n: int, top: Any, size: Any) -> None:
    """scores[:n] become e^(score - top), with the largest score of each column in `top` and the sum in `size`."""
    largest_of_columns(scores, n, top)
    for j in range(top.size):
        top[j] = top[j] if top[j] > NEVER else ZERO  # all keys are masked: weights and sum become 0
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
    q: Any, key: Any, v: Any, y: Any, lse: Any, scale: float, causal: bool, drop: bool, draw: Any, parts: int, thread:
    Any = ALONE,
) -> None:  # fmt: skip
    """y (B, H, T, D) and lse (B, H, T) from q (B, H, T, D) and key, v (B, G, S, D)."""
    n_head, n_heads = q.shape[1], q.shape[0] * q.shape[1]
    for part in prange(parts, thread):
        workspace = forward_workspace(q[0, 0], v[0, 0], drop)
        for head in range(n_heads * part // parts, n_heads * (part + 1) // parts):
            b, h = head // n_head, head % n_head
            g = h // (n_head // key.shape[1])
            attend_head(q[b, h], key[b, g], v[b, g], y[b, h], lse[b, h], scale, causal, drop, draw, head, workspace)
