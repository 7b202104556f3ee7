"""Attention, backward: NR keys of one head at a time; every head is computed by one thread.

With weights p: dv = p^T dy; dp = dy v^T; ds = p (dp - sum(dy y)); dq = scale ds key; dkey = ds^T (scale q).

For NR keys, p and ds are matrices (queries, keys) with NR columns, so each is already a packed panel. dv and dkey are
sums over all queries, which the microkernel keeps in registers until they are complete. Only dq is accumulated in
memory, over the blocks of NR keys.
"""

from typing import Any, NamedTuple

from numba import types

from tensorgrad.backend.numba.compile import inline, noinline
from tensorgrad.backend.numba.dropout import DRAW, fill_kept, words_for
from tensorgrad.backend.numba.mathematics import NEVER, ONE, ZERO, exp_at_most_0
from tensorgrad.backend.numba.microkernel import MR, microkernel, microkernel_transposed, nr_of, round_up
from tensorgrad.backend.numba.pack import matrix, pack_panels, pack_rows, pack_transposed, padded_matrix
from tensorgrad.backend.numba.parallel import ALONE, prange
from tensorgrad.backend.numba.reductions import dot
from tensorgrad.backend.numba.strided import array, as_panels, as_row, contiguous_row, strided


class BackwardWorkspace(NamedTuple):
    """The arrays that a thread reuses: the first five for each head, the others for each NR keys."""

    queries: Any  # (T, D + 1): q times the scale; the last column is -logsumexp
    gradients: Any  # (T, D + 1): dy; the last column is -sum(dy y)
    weights: Any  # (T, nr)
    dscores: Any  # (T, nr)
    dqueries: Any  # (T, D)
    dkeys: Any  # (n D, nr) for n blocks of NR keys: all blocks if heads share the keys, otherwise one
    dvalues: Any  # (n D, nr)
    keys: Any  # (D, nr): the packed panels of NR keys, one after the other
    keys_transposed: Any  # (D + 1, nr): a packed panel; the last row is 1
    values_transposed: Any  # (D + 1, nr): a packed panel; the last row is 1, or 0 with dropout
    kept: Any  # (MR, nr): what dropout multiplies weights by
    words: Any


@noinline
def backward_workspace(q: Any, v: Any, shared: bool, drop: bool) -> BackwardWorkspace:
    """A workspace for heads with q (T, D) and v (S, D)."""
    nr, n_queries = nr_of(q), round_up(len(q), MR)
    width, v_width = round_up(q.shape[1], MR), round_up(v.shape[1], MR)
    n_blocks, n_panels = round_up(len(v), nr) // nr if shared else 1, round_up(q.shape[1], nr) // nr
    keys_transposed, values_transposed = matrix(q.shape[1] + 1, nr, q), matrix(v.shape[1] + 1, nr, q)
    keys_transposed[-1] = 1
    values_transposed[-1] = 0 if drop else 1
    return BackwardWorkspace(
        padded_matrix(n_queries, q.shape[1], q), padded_matrix(n_queries, v.shape[1], q),
        matrix(n_queries, nr, q), matrix(n_queries, nr, q), matrix(n_queries, n_panels * nr, q),
        matrix(n_blocks * width, nr, q), matrix(n_blocks * v_width, nr, q),
        matrix(n_panels * nr, nr, q),
        keys_transposed, values_transposed, matrix(MR, nr, q), words_for(nr),
    )  # fmt: skip


@noinline
def pack_queries(dy: Any, q: Any, y: Any, lse: Any, scale: float, queries: Any, gradients: Any) -> None:
    """Pack scale q and dy, each with one more column: -logsumexp of the scores, and -sum(dy y).

    The matching row of keys and values is 1, so the products subtract them: from the scores, and from their gradients.
    """
    (n_query, n_width), v_width = q.shape, dy.shape[1]
    pack_rows(q, queries, q.dtype.type(scale))
    pack_rows(dy, gradients, ONE)
    for i in range(n_query):
        queries[i, n_width] = -lse[i] if lse[i] > NEVER else NEVER
        gradients[i, v_width] = -dot(contiguous_row(dy[i]), contiguous_row(y[i]))
    queries[n_query:, n_width] = NEVER


@inline
def differentiate_softmax(weights: Any, dscores: Any, nr: int, seen: int) -> None:
    """weights = e^weights and dscores *= weights, for MR queries; both (MR, nr) come as one row.

    `weights` holds scores - logsumexp, `dscores` the gradients of the weights - sum(dy y). Query i attends to the first
    `seen` + i keys; the weights of the others become 0.
    """
    for t in range(weights.size):
        weight = exp_at_most_0(weights[t])
        weight = weight if t % nr < seen + t // nr else ZERO
        weights[t] = weight
        dscores[t] *= weight


@inline
def multiply(x: Any, y: Any) -> None:
    """x *= y, for contiguous rows."""
    for t in range(x.size):
        x[t] *= y[t]


@noinline
def drop_gradients(
    dscores: Any, row: int, common: Any, kept: Any, number: int, n_key: int, words: Any, draw: Any
) -> None:
    """Fill `kept` with what dropout multiplies MR rows of weights by; dscores = dscores kept + common in these rows."""
    for i in range(len(kept)):
        fill_kept(kept[i], number + i * n_key, words, draw)
        for j in range(kept.shape[1]):
            dscores[row + i, j] = dscores[row + i, j] * kept[i, j] + common[row + i]


@noinline
def differentiate(
    dy: Any, q: Any, key: Any, v: Any, y: Any, lse: Any, dq: Any, dkey: Any, dv: Any, scale: float, causal: bool,
    drop: bool, draw: Any, head: int, is_first: bool, is_last: bool, workspace: Any,
) -> None:  # fmt: skip
    """Compute dq (T, D) of one head, and add to the sums of its key head; the last of its heads writes dkey and dv."""
    queries, gradients, weights, dscores, dqueries, dkeys, dvalues = workspace[:7]
    keys, keys_transposed, values_transposed, kept, words = workspace[7:]
    (n_query, n_width), (n_key, v_width), nr = q.shape, v.shape, nr_of(q)
    width, v_whole, later = round_up(n_width, MR), round_up(v_width, MR), n_key - n_query
    weight_panel, dscore_panel = as_panels(weights, 1), as_panels(dscores, 1)
    keys_panel, values_panel = as_panels(keys_transposed, 1), as_panels(values_transposed, 1)
    key_panels = as_panels(keys, len(keys) // nr)
    pack_queries(dy, q, y, lse, scale, queries, gradients)
    dqueries[:] = 0
    for start in range(0, n_key, nr):
        n, block = min(nr, n_key - start), start // nr if len(dkeys) > width else 0
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
            p_row, ds_row = as_row(weights, row, MR), as_row(dscores, row, MR)
            differentiate_softmax(p_row, ds_row, nr, row + 1 + later - start if causal else nr)
            if drop:
                multiply(p_row, as_row(kept, 0, MR))
            for p in range(len(key_panels)):
                microkernel(dscores, row, 0, n, key_panels, p, dqueries, row, p * nr, True)
        microkernel_transposed(queries, n_width, first, n_query, dscore_panel, dkeys, block * width, not is_first)
        microkernel_transposed(gradients, v_width, first, n_query, weight_panel, dvalues, block * v_whole, not is_first)
        if is_last:
            pack_transposed(dkeys.T[:n, block * width : block * width + n_width], dkey[start : start + n])
            pack_transposed(dvalues.T[:n, block * v_whole : block * v_whole + v_width], dv[start : start + n])
    pack_rows(dqueries[:n_query, :n_width], dq, q.dtype.type(scale))


@strided(
    lambda real: (array(real, 4),) * 5 + (array(real, 3),) + (array(real, 4),) * 3
    + (types.float64, types.boolean, types.boolean, DRAW, types.int64)
)  # fmt: skip
def backward(
    dy: Any, q: Any, key: Any, v: Any, y: Any, lse: Any, dq: Any, dkey: Any, dv: Any, scale: float, causal: bool,
    drop: bool, draw: Any, parts: int, thread: Any = ALONE,
) -> None:  # fmt: skip
    """dq (B, H, T, D), dkey and dv (B, G, S, D). Heads that share a key head are summed by one thread."""
    n_head, n_group, n_groups = q.shape[1], key.shape[1], key.shape[0] * key.shape[1]
    shared = n_head // n_group
    for part in prange(parts, thread):
        workspace = backward_workspace(q[0, 0], v[0, 0], shared > 1, drop)
        for head in range(n_groups * part // parts * shared, n_groups * (part + 1) // parts * shared):
            b, h = head // n_head, head % n_head
            g = h // shared
            differentiate(
                dy[b, h], q[b, h], key[b, g], v[b, g], y[b, h], lse[b, h], dq[b, h], dkey[b, g], dv[b, g],
                scale, causal, drop, draw, head, h % shared == 0, (h + 1) % shared == 0, workspace,
            )  # fmt: skip
