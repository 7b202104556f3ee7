"""Causal attention in NumPy, a block of query rows at a time: each meets only the keys that it may see.

The mathematics of `Backend.attention` with every step in place. In the functions the query heads that share a key head
stand side by side: q, y and their gradients are (B, G, H / G, T, D), lse (B, G, H / G, T, 1), and key and v
(B, G, 1, S, D).
"""

import functools
import math
from collections.abc import Callable, Iterator

import numpy as np

from tensorgrad.backend import blas
from tensorgrad.backend.arrays import Array, Dropout, is_half, split_heads
from tensorgrad.backend.numpy.blocks import Blocks, cut

ROWS = 64  # query rows of a block
SAFE = 40  # scores between -40 and 40: e^score neither overflows float32 nor vanishes, nor does the sum of a row


def causal_blocks(n_query: int, n_key: int) -> Iterator[tuple[slice, slice]]:
    """Blocks of query rows that see any key, and the keys that their last row sees: the first of all sees every one."""
    for start in reversed(range(0, n_query, ROWS)):
        stop = min(start + ROWS, n_query)
        if stop + n_key > n_query:
            yield slice(start, stop), slice(0, stop + n_key - n_query)


def scores_of(q: Array, key: Array, scale: float) -> tuple[Array, bool]:
    """scale q key^T (..., rows, keys), -inf where a query may not attend; and whether all others are safe."""
    scores = np.matmul(q, key.swapaxes(-1, -2))
    scores *= scale
    are_safe = bool(scores.max() <= SAFE and scores.min() >= -SAFE)
    n_rows, n_key = scores.shape[-2:]
    corner = scores[..., max(0, n_key - n_rows) :]  # all that some row of the block does not see
    minus = unseen(n_rows, corner.shape[-1], scores.dtype)
    if are_safe:
        corner += minus
    else:  # of NaN and infinity, too, nobody may see more than of other numbers
        np.copyto(corner, minus, where=minus < 0)
    return scores, are_safe


@functools.lru_cache(maxsize=16)
def unseen(n_rows: int, n_key: int, dtype: np.dtype[np.floating]) -> Array:
    """-inf where a query may not attend, 0 elsewhere; the last row sees all keys."""
    return np.where(np.tri(n_rows, n_key, n_key - n_rows, dtype=bool), 0, -np.inf).astype(dtype)


def attend(scale: float, y: Array, lse: Array, q: Array, key: Array, v: Array) -> None:
    """y and lse of q, key and v."""
    ones = np.ones((key.shape[-2], 1), key.dtype)
    for rows, seen in causal_blocks(q.shape[-2], key.shape[-2]):
        weights, safe = scores_of(q[..., rows, :], key[..., seen, :], scale)
        top = 0 if safe else finite(weights.max(axis=-1, keepdims=True))
        if not safe:
            weights -= top
        np.exp(weights, out=weights)
        size = np.matmul(weights, ones[seen])  # a sum over rows, and faster than one
        part = np.matmul(weights, v[..., seen, :])
        np.divide(part, np.maximum(size, np.finfo(size.dtype).tiny), out=y[..., rows, :])
        with np.errstate(divide="ignore"):
            lse[..., rows, :] = np.log(size) + top


def attend_backward(
    scale: float, dq: Array, dkey: Array, dv: Array, dy: Array, q: Array, key: Array, v: Array, y: Array, lse: Array
) -> None:
    """dq, dkey and dv. With safe scores each row of weights is e^score / e^lse, and it is dy that is divided."""
    for rows, seen in causal_blocks(q.shape[-2], key.shape[-2]):
        gradient, last = dy[..., rows, :], rows.stop == q.shape[-2]
        weights, safe = scores_of(q[..., rows, :], key[..., seen, :], scale)
        if safe:
            gradient = gradient * np.exp(-finite(lse[..., rows, :]))
        else:
            weights -= finite(lse[..., rows, :])
        np.exp(weights, out=weights)
        dscores = np.matmul(gradient, v[..., seen, :].swapaxes(-1, -2))
        dscores -= np.vecdot(gradient, y[..., rows, :])[..., None]
        dscores *= weights
        dscores *= scale
        np.matmul(dscores, key[..., seen, :], out=dq[..., rows, :])
        add_over_heads(dkey[..., seen, :], dscores, q[..., rows, :], not last)
        add_over_heads(dv[..., seen, :], weights, gradient, not last)


def add_over_heads(total: Array, a: Array, b: Array, add: bool) -> None:
    """total (B, G, 1, S, D) = the sum of a^T b over the heads that share a key head; or added to it."""
    if add or a.shape[2] > 1:
        part = np.matmul(a.swapaxes(-1, -2), b)
        part = part if a.shape[2] == 1 else part.sum(axis=2, keepdims=True)
        np.add(total, part, out=total) if add else np.copyto(total, part)
    else:
        np.matmul(a.swapaxes(-1, -2), b, out=total)


def finite(x: Array) -> Array:
    """x, with 0 for -inf: of a row that sees nothing, whose weights are 0 already."""
    return np.where(np.isneginf(x), 0, x)


class Attention(Blocks):
    """The functions above; masks, dropout, and what is not causal, are the plain mathematics."""

    def attention(
        self, q: Array, key: Array, v: Array, causal: bool, mask: Array | None, dropout: Dropout | None, scale: float
    ) -> tuple[Array, Array]:
        """softmax(scale q key^T) v for every head, and the logsumexp of every row."""
        if not takes(q, key, v) or not causal or mask is not None or dropout is not None:
            return super().attention(q, key, v, causal, mask, dropout, scale)
        n_batch, n_head, n_query, _ = q.shape
        y = np.zeros((n_batch, n_query, n_head, v.shape[-1]), q.dtype).transpose(0, 2, 1, 3)  # a token's heads together
        lse = np.full((n_batch, n_head, n_query, 1), -np.inf, q.dtype)
        self._of_heads(functools.partial(attend, scale), key.shape, y, lse, q, key, v)
        return y, lse

    def attention_backward(
        self, dy: Array, q: Array, key: Array, v: Array, y: Array, lse: Array,
        causal: bool, mask: Array | None, dropout: Dropout | None, scale: float,
    ) -> tuple[Array, Array, Array]:  # fmt: skip
        """dq, dkey, dv; side by side in one array where all three have one shape, as a projection's gradient needs."""
        if not takes(dy, q, key, v, y, lse) or not causal or mask is not None or dropout is not None:
            return super().attention_backward(dy, q, key, v, y, lse, causal, mask, dropout, scale)
        dq, dkey, dv = room_for_gradients(q, key, v)
        self._of_heads(functools.partial(attend_backward, scale), key.shape, dq, dkey, dv, dy, q, key, v, y, lse)
        return dq, dkey, dv

    def _of_heads(self, fn: Callable[..., None], key_shape: tuple[int, ...], *arrays: Array) -> None:
        """fn on parts of the batch that make a block of scores each, and where that is too few, of its key heads."""
        n_batch, n_group, n_key, _ = key_shape
        grouped = [split_heads(x, n_group) for x in arrays]
        n_head, n_query = arrays[0].shape[1:3]
        blas.use_threads(1)
        n_parts = len(self._blocks(n_batch * n_head, min(n_query, ROWS) * n_key))
        batches = cut(n_batch, n_parts)
        heads = cut(n_group, math.ceil(n_parts / len(batches)))
        self._on_all_threads(fn, [tuple(x[b, g] for x in grouped) for b in batches for g in heads])


def takes(*arrays: Array) -> bool:
    """Whether the functions above are for these: all of one dtype, and none empty."""
    return all(x.size and x.dtype == arrays[0].dtype for x in arrays) and not is_half(arrays[0].dtype)


def room_for_gradients(q: Array, key: Array, v: Array) -> tuple[Array, Array, Array]:
    """Arrays of the three shapes, 0 where no key is seen."""
    if q.shape == key.shape == v.shape:
        n_batch, n_head, n_query, n_embd = q.shape
        joined = np.empty((n_batch, n_query, 3, n_head, n_embd), q.dtype)
        dq, dkey, dv = (joined[:, :, i].transpose(0, 2, 1, 3) for i in range(3))
        return dq, dkey, dv
    dq, dkey, dv = (np.zeros(x.shape, x.dtype) for x in (q, key, v))
    return dq, dkey, dv
