"""Attention, backward: as many keys at a time as a tile has columns, of a head that one thread has to itself.

With weights p: dv = p^T dy; dp = dy v^T; ds = p (dp - sum(dy y)); dq = scale ds key; dkey = ds^T (scale q). Weights and
the gradients of scores (queries, keys) are panels: dv and dkey, sums over all queries, stay in the registers until they
are whole, and only dq is added up tile of keys by tile of keys.
"""

from typing import Any, NamedTuple

from numba import types

from tensorgrad.backend.numba.compile import inline, noinline, prange
from tensorgrad.backend.numba.dropout import DRAW, fill_kept, words_for
from tensorgrad.backend.numba.mathematics import NEVER, ONE, ZERO, exp_at_most_0
from tensorgrad.backend.numba.microkernel import MR, microkernel, microkernel_transposed, nr_of, round_up
from tensorgrad.backend.numba.pack import ROW_PADDING, matrix, pack_panels, pack_rows, pack_transposed
from tensorgrad.backend.numba.reductions import dot
from tensorgrad.backend.numba.strided import array, as_panels, as_row, packed_row, strided


class BackwardWorkspace(NamedTuple):
    """Where a thread keeps what belongs to a head, and in the lower half to the keys of a tile."""

    queries: Any  # (T, D + 1), times the scale; last -logsumexp
    gradients: Any  # (T, D + 1); last -sum(dy y)
    weights: Any  # (T, nr)
    dscores: Any  # (T, nr)
    dqueries: Any  # (T, D)
    dkeys: Any  # (n D, nr) for n tiles of keys: for all where heads share them, else for one
    dvalues: Any  # (n D, nr)
    keys: Any  # (D / nr, nr, nr), the first two as one
    keys_across: Any  # (D + 1, nr); last 1
    values_across: Any  # (D + 1, nr); last 1, or 0 with dropout
    kept: Any  # (MR, nr), for dropout
    words: Any


@noinline
def backward_workspace(q: Any, v: Any, shared: bool, drop: bool) -> BackwardWorkspace:
    """For one head's q (T, D) and v (S, D)."""
    nr, n_queries = nr_of(q), round_up(len(q), MR)
    width, v_width = round_up(q.shape[1], MR), round_up(v.shape[1], MR)
    n_tiles, n_panels = round_up(len(v), nr) // nr if shared else 1, round_up(q.shape[1], nr) // nr
    keys_across, values_across = matrix(q.shape[1] + 1, nr, q), matrix(v.shape[1] + 1, nr, q)
    keys_across[-1] = 1
    values_across[-1] = 0 if drop else 1
    return BackwardWorkspace(
        matrix(n_queries, width + ROW_PADDING, q), matrix(n_queries, v_width + ROW_PADDING, q),
        matrix(n_queries, nr, q), matrix(n_queries, nr, q), matrix(n_queries, n_panels * nr, q),
        matrix(n_tiles * width, nr, q), matrix(n_tiles * v_width, nr, q),
        matrix(n_panels * nr, nr, q),
        keys_across, values_across, matrix(MR, nr, q), words_for(nr),
    )  # fmt: skip


@noinline
def fill_queries(dy: Any, q: Any, y: Any, lse: Any, scale: float, queries: Any, gradients: Any) -> None:
    """What is known of every query: its row of q and dy, and what is subtracted from its scores and their gradients.

    That is one more element of the row, and 1 of every key: so the product subtracts it.
    """
    (n_query, n_width), v_width = q.shape, dy.shape[1]
    pack_rows(q, queries, q.dtype.type(scale))
    pack_rows(dy, gradients, ONE)
    for i in range(n_query):
        queries[i, n_width] = -lse[i] if lse[i] > NEVER else NEVER
        gradients[i, v_width] = -dot(packed_row(dy[i]), packed_row(y[i]))
    queries[n_query:, n_width] = NEVER


@inline
def differentiate_softmax(weights: Any, dscores: Any, nr: int, seen: int) -> None:
    """A strip of scores less logsumexp -> weights; of their gradients less the common part -> those of the scores.

    Query i of the strip sees `seen` + i of the keys.
    """
    for t in range(weights.size):
        weight = exp_at_most_0(weights[t])
        weight = weight if t % nr < seen + t // nr else ZERO
        weights[t] = weight
        dscores[t] *= weight


@inline
def multiply(x: Any, y: Any) -> None:
    """x *= y, for rows."""
    for t in range(x.size):
        x[t] *= y[t]


@noinline
def drop_gradients(
    dscores: Any, row: int, common: Any, kept: Any, number: int, n_key: int, words: Any, draw: Any
) -> None:
    """kept: what dropout multiplies a strip of weights with; and their gradients through that, less the common part."""
    for i in range(len(kept)):
        fill_kept(kept[i], number + i * n_key, words, draw)
        for j in range(kept.shape[1]):
            dscores[row + i, j] = dscores[row + i, j] * kept[i, j] + common[row + i]


@noinline
def differentiate(
    dy: Any, q: Any, key: Any, v: Any, y: Any, lse: Any, dq: Any, dkey: Any, dv: Any, scale: float, causal: bool,
    drop: bool, draw: Any, head: int, is_first: bool, is_last: bool, workspace: Any,
) -> None:  # fmt: skip
    """dq (T, D) of one head; its part of dkey and dv (S, D), which the last of those that share a key head writes."""
    queries, gradients, weights, dscores, dqueries, dkeys, dvalues = workspace[:7]
    keys, keys_across, values_across, kept, words = workspace[7:]
    (n_query, n_width), (n_key, v_width), nr = q.shape, v.shape, nr_of(q)
    width, v_whole, later = round_up(n_width, MR), round_up(v_width, MR), n_key - n_query
    weight_panel, dscore_panel = as_panels(weights, 1), as_panels(dscores, 1)
    keys_panel, values_panel = as_panels(keys_across, 1), as_panels(values_across, 1)
    key_panels = as_panels(keys, len(keys) // nr)
    fill_queries(dy, q, y, lse, scale, queries, gradients)
    dqueries[:] = 0
    for start in range(0, n_key, nr):
        n, place = min(nr, n_key - start), start // nr if len(dkeys) > width else 0
        pack_panels(key[start : start + n], key_panels)
        pack_panels(key[start : start + n].T, keys_panel)
        pack_panels(v[start : start + n].T, values_panel)
        first = max(0, start - later) // MR * MR if causal else 0
        for row in range(first, n_query, MR):
            microkernel(queries, row, 0, n_width + 1, keys_panel, 0, weights, row, 0, False)
            microkernel(gradients, row, 0, v_width + 1, values_panel, 0, dscores, row, 0, False)
            if drop:
                number = (head * n_query + row) * n_key + start
                drop_gradients(dscores, row, gradients[:, v_width], kept, number, n_key, words, draw)
            strip, dstrip = as_row(weights, row, MR), as_row(dscores, row, MR)
            differentiate_softmax(strip, dstrip, nr, row + 1 + later - start if causal else nr)
            if drop:
                multiply(strip, as_row(kept, 0, MR))
            for p in range(len(key_panels)):
                microkernel(dscores, row, 0, n, key_panels, p, dqueries, row, p * nr, True)
        microkernel_transposed(queries, n_width, first, n_query, dscore_panel, dkeys, place * width, not is_first)
        microkernel_transposed(gradients, v_width, first, n_query, weight_panel, dvalues, place * v_whole, not is_first)
        if is_last:
            pack_transposed(dkeys.T[:n, place * width : place * width + n_width], dkey[start : start + n])
            pack_transposed(dvalues.T[:n, place * v_whole : place * v_whole + v_width], dv[start : start + n])
    pack_rows(dqueries[:n_query, :n_width], dq, q.dtype.type(scale))


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
        workspace = backward_workspace(q[0, 0], v[0, 0], shared > 1, drop)
        for head in range(n_groups * part // parts * shared, n_groups * (part + 1) // parts * shared):
            b, h = head // n_head, head % n_head
            g = h // shared
            differentiate(
                dy[b, h], q[b, h], key[b, g], v[b, g], y[b, h], lse[b, h], dq[b, h], dkey[b, g], dv[b, g],
                scale, causal, drop, draw, head, h % shared == 0, (h + 1) % shared == 0, workspace,
            )  # fmt: skip
