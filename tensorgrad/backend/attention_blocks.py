"""Causal attention in NumPy, a block of query rows at a time: each meets only the keys that it may see.

The mathematics of `Backend.attention` with every step in place, for one sequence; blocks of scores stay in the cache.
"""

from collections.abc import Iterator

import numpy as np

from tensorgrad.backend.base import Array

ROWS = 64  # query rows of a block


def causal_blocks(n_query: int, n_key: int) -> Iterator[tuple[slice, slice]]:
    """Blocks of query rows that see any key, and the keys that their last row sees; the last of all sees every one."""
    for start in range(0, n_query, ROWS):
        stop = min(start + ROWS, n_query)
        if stop + n_key > n_query:
            yield slice(start, stop), slice(0, stop + n_key - n_query)


def _scores(q: Array, key: Array, scale: float) -> Array:
    """scale q key^T (H, rows, keys), -inf where a query may not attend; q (H, rows, D), key (G, keys, D)."""
    n_head, n_rows, _ = q.shape
    n_key = key.shape[1]
    scores = np.matmul(_grouped(q * scale, len(key)), key.swapaxes(-1, -2)[:, None]).reshape(n_head, n_rows, n_key)
    corner = scores[:, :, max(0, n_key - n_rows) :]  # all that some row of the block does not see
    np.copyto(corner, -np.inf, where=~np.tri(n_rows, corner.shape[2], corner.shape[2] - n_rows, dtype=bool))
    return scores


def _grouped(x: Array, groups: int) -> Array:
    """(H, rows, n) -> (G, H / G, rows, n): the query heads that share a key head side by side."""
    return x.reshape(groups, len(x) // groups, *x.shape[1:])


def attend(scale: float, y: Array, lse: Array, q: Array, key: Array, v: Array) -> None:
    """One sequence of `NumpyBackend.attention`; y (H, T, D) and lse (H, T, 1) are written into."""
    for rows, seen in causal_blocks(q.shape[1], key.shape[1]):
        weights = _scores(q[:, rows], key[:, seen], scale)
        top = weights.max(axis=-1, keepdims=True)
        top[np.isneginf(top)] = 0  # a row that sees nothing
        weights -= top
        np.exp(weights, out=weights)
        size = weights.sum(axis=-1, keepdims=True)
        total = np.matmul(_grouped(weights, len(v)), v[:, None, seen]).reshape(len(q), size.shape[1], v.shape[2])
        y[:, rows] = total / np.maximum(size, np.finfo(size.dtype).tiny)
        with np.errstate(divide="ignore"):
            lse[:, rows] = np.log(size) + top


def attend_backward(
    scale: float, dq: Array, dkey: Array, dv: Array, dy: Array, q: Array, key: Array, v: Array, y: Array, lse: Array
) -> None:
    """One sequence of `NumpyBackend.attention_backward`; dq, dkey and dv, all zeros, are written into."""
    for rows, seen in causal_blocks(q.shape[1], key.shape[1]):
        p = _scores(q[:, rows], key[:, seen], scale)
        p -= np.where(np.isneginf(lse[:, rows]), 0, lse[:, rows])
        np.exp(p, out=p)
        weights, gradient = _grouped(p, len(v)), _grouped(dy[:, rows], len(v))
        dv[:, seen] += np.matmul(weights.swapaxes(-1, -2), gradient).sum(axis=1)
        dscores = np.matmul(gradient, v[:, None, seen].swapaxes(-1, -2))
        dscores -= _grouped((dy[:, rows] * y[:, rows]).sum(axis=-1, keepdims=True), len(v))
        dscores *= weights
        dscores *= scale
        dq[:, rows] = np.matmul(dscores, key[:, None, seen]).reshape(dq[:, rows].shape)
        dkey[:, seen] += np.matmul(dscores.swapaxes(-1, -2), _grouped(q[:, rows], len(v))).sum(axis=1)
