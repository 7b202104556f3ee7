"""Attention, backward: as many keys at a time as a tile has columns, of a head that one thread has to itself.

With weights p: dv = p^T dy; dp = dy v^T; ds = p (dp - sum(dy y)); dq = scale ds key; dkey = ds^T (scale q). Weights and
the gradients of scores (queries, keys) are panels: dv and dkey, sums over all queries, stay in the registers until they
are whole, and only dq is added up tile of keys by tile of keys.
"""

from typing import Any, NamedTuple

from numba import types

from tensorgrad.backend.numba.compile import apart, compiled, prange
from tensorgrad.backend.numba.dropout import DRAW, fill_kept, words_for
from tensorgrad.backend.numba.mathematics import NEVER, ONE, ZERO, exp_at_most_0
from tensorgrad.backend.numba.panels import SPARE, fill_across, fill_panels, fill_rows, matrix
from tensorgrad.backend.numba.strided import array, as_panels, as_row, packed_row, strided
from tensorgrad.backend.numba.sums import dot
from tensorgrad.backend.numba.tile import ROWS, multiply_across, n_lanes, tile, whole


class BackwardRoom(NamedTuple):
    """Where a thread keeps what belongs to a head, and in the lower half to the keys of a tile."""

    queries: Any  # (T, D + 1), times the scale; last -logsumexp
    gradients: Any  # (T, D + 1); last -sum(dy y)
    weights: Any  # (T, lanes)
    dscores: Any  # (T, lanes)
    dqueries: Any  # (T, D)
    dkeys: Any  # (n D, lanes) for n tiles of keys: for all where heads share them, else for one
    dvalues: Any  # (n D, lanes)
    keys: Any  # (D / lanes, lanes, lanes), the first two as one
    keys_across: Any  # (D + 1, lanes); last 1
    values_across: Any  # (D + 1, lanes); last 1, or 0 with dropout
    kept: Any  # (ROWS, lanes), for dropout
    words: Any


@apart
def backward_room(q: Any, v: Any, shared: bool, drop: bool) -> BackwardRoom:
    """For one head's q (T, D) and v (S, D)."""
    lanes, n_queries = n_lanes(q), whole(len(q), ROWS)
    width, v_width = whole(q.shape[1], ROWS), whole(v.shape[1], ROWS)
    n_tiles, n_panels = whole(len(v), lanes) // lanes if shared else 1, whole(q.shape[1], lanes) // lanes
    keys_across, values_across = matrix(q.shape[1] + 1, lanes, q), matrix(v.shape[1] + 1, lanes, q)
    keys_across[-1] = 1
    values_across[-1] = 0 if drop else 1
    return BackwardRoom(
        matrix(n_queries, width + SPARE, q), matrix(n_queries, v_width + SPARE, q),
        matrix(n_queries, lanes, q), matrix(n_queries, lanes, q), matrix(n_queries, n_panels * lanes, q),
        matrix(n_tiles * width, lanes, q), matrix(n_tiles * v_width, lanes, q),
        matrix(n_panels * lanes, lanes, q),
        keys_across, values_across, matrix(ROWS, lanes, q), words_for(lanes),
    )  # fmt: skip


@apart
def fill_queries(dy: Any, q: Any, y: Any, lse: Any, scale: float, queries: Any, gradients: Any) -> None:
    """What is known of every query: its row of q and dy, and what is subtracted from its scores and their gradients.

    That is one more element of the row, and 1 of every key: so the product subtracts it.
    """
    (n_query, n_width), v_width = q.shape, dy.shape[1]
    fill_rows(q, queries, q.dtype.type(scale))
    fill_rows(dy, gradients, ONE)
    for i in range(n_query):
        queries[i, n_width] = -lse[i] if lse[i] > NEVER else NEVER
        gradients[i, v_width] = -dot(packed_row(dy[i]), packed_row(y[i]))
    queries[n_query:, n_width] = NEVER


@compiled
def differentiate_softmax(weights: Any, dscores: Any, lanes: int, seen: int) -> None:
    """A strip of scores less logsumexp -> weights; of their gradients less the common part -> those of the scores.

    Query i of the strip sees `seen` + i of the keys.
    """
    for t in range(weights.size):
        weight = exp_at_most_0(weights[t])
        weight = weight if t % lanes < seen + t // lanes else ZERO
        weights[t] = weight
        dscores[t] *= weight


@compiled
def multiply(x: Any, y: Any) -> None:
    """x *= y, for rows."""
    for t in range(x.size):
        x[t] *= y[t]


@apart
def drop_gradients(
    dscores: Any, row: int, common: Any, kept: Any, number: int, n_key: int, words: Any, draw: Any
) -> None:
    """kept: what dropout multiplies a strip of weights with; and their gradients through that, less the common part."""
    for i in range(len(kept)):
        fill_kept(kept[i], number + i * n_key, words, draw)
        for j in range(kept.shape[1]):
            dscores[row + i, j] = dscores[row + i, j] * kept[i, j] + common[row + i]


@apart
def differentiate(
    dy: Any, q: Any, key: Any, v: Any, y: Any, lse: Any, dq: Any, dkey: Any, dv: Any, scale: float, causal: bool,
    drop: bool, draw: Any, head: int, is_first: bool, is_last: bool, room: Any,
) -> None:  # fmt: skip
    """dq (T, D) of one head; its part of dkey and dv (S, D), which the last of those that share a key head writes."""
    queries, gradients, weights, dscores, dqueries, dkeys, dvalues, keys, keys_across, values_across, kept, words = room
    (n_query, n_width), (n_key, v_width), lanes = q.shape, v.shape, n_lanes(q)
    width, v_whole, later = whole(n_width, ROWS), whole(v_width, ROWS), n_key - n_query
    weight_panel, dscore_panel = as_panels(weights, 1), as_panels(dscores, 1)
    keys_panel, values_panel = as_panels(keys_across, 1), as_panels(values_across, 1)
    key_panels = as_panels(keys, len(keys) // lanes)
    fill_queries(dy, q, y, lse, scale, queries, gradients)
    dqueries[:] = 0
    for start in range(0, n_key, lanes):
        n, place = min(lanes, n_key - start), start // lanes if len(dkeys) > width else 0
        fill_panels(key[start : start + n], key_panels)
        fill_panels(key[start : start + n].T, keys_panel)
        fill_panels(v[start : start + n].T, values_panel)
        first = max(0, start - later) // ROWS * ROWS if causal else 0
        for row in range(first, n_query, ROWS):
            tile(queries, row, 0, n_width + 1, keys_panel, 0, weights, row, 0, False)
            tile(gradients, row, 0, v_width + 1, values_panel, 0, dscores, row, 0, False)
            if drop:
                number = (head * n_query + row) * n_key + start
                drop_gradients(dscores, row, gradients[:, v_width], kept, number, n_key, words, draw)
            strip, dstrip = as_row(weights, row, ROWS), as_row(dscores, row, ROWS)
            differentiate_softmax(strip, dstrip, lanes, row + 1 + later - start if causal else lanes)
            if drop:
                multiply(strip, as_row(kept, 0, ROWS))
            for p in range(len(key_panels)):
                tile(dscores, row, 0, n, key_panels, p, dqueries, row, p * lanes, True)
        multiply_across(queries, n_width, first, n_query, dscore_panel, dkeys, place * width, not is_first)
        multiply_across(gradients, v_width, first, n_query, weight_panel, dvalues, place * v_whole, not is_first)
        if is_last:
            fill_across(dkeys.T[:n, place * width : place * width + n_width], dkey[start : start + n])
            fill_across(dvalues.T[:n, place * v_whole : place * v_whole + v_width], dv[start : start + n])
    fill_rows(dqueries[:n_query, :n_width], dq, q.dtype.type(scale))


@strided(
    lambda real: (array(real, 4),) * 5 + (array(real, 3),) + (array(real, 4),) * 3
    + (types.float64, types.boolean, types.boolean, DRAW, types.int64)
)  # fmt: skip
def backward(
    dy: Any, q: Any, key: Any, v: Any, y: Any, lse: Any, dq: Any, dkey: Any, dv: Any, scale: float, causal: bool,
    drop: bool, draw: Any, parts: int,
) -> None:  # fmt: skip
    """dq (B, H, T, D), dkey and dv (B, G, S, D). Heads that share a key head are one thread's: they add up for it."""
    n_head, n_group, n_groups = q.shape[1], key.shape[1], key.shape[0] * key.shape[1]
    shared = n_head // n_group
    for part in prange(parts):
        room = backward_room(q[0, 0], v[0, 0], shared > 1, drop)
        for head in range(n_groups * part // parts * shared, n_groups * (part + 1) // parts * shared):
            b, h = head // n_head, head % n_head
            g = h // shared
            differentiate(
                dy[b, h], q[b, h], key[b, g], v[b, g], y[b, h], lse[b, h], dq[b, h], dkey[b, g], dv[b, g],
                scale, causal, drop, draw, head, h % shared == 0, (h + 1) % shared == 0, room,
            )  # fmt: skip
