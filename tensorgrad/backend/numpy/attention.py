"""Causal attention in NumPy, a block of query rows at a time, which is multiplied only by the keys that it may see.

The formulas are those of `Math.attention`, with every step in place. In the functions the query heads that share a key
head have an axis of their own: q, y and their gradients are (B, G, H / G, T, D), lse is (B, G, H / G, T, 1), and key
and v are (B, G, 1, S, D).
"""

import functools
import math
from collections.abc import Callable, Iterator

import numpy as np

from tensorgrad.backend import blas
from tensorgrad.backend.arrays import Array, Dropout, is_half, split_heads
from tensorgrad.backend.numpy.blocks import Blocks, split

BLOCK_ROWS = 64  # query rows of a block
MAX_SAFE_SCORE = 40  # between -40 and 40, e^score and the sum of a row neither overflow nor underflow float32


def causal_blocks(n_query: int, n_key: int) -> Iterator[tuple[slice, slice]]:
    """Blocks of query rows that see any key, and the keys that their last row sees; the first block sees all keys."""
    for start in reversed(range(0, n_query, BLOCK_ROWS)):
        stop = min(start + BLOCK_ROWS, n_query)
        if stop + n_key > n_query:
            yield slice(start, stop), slice(0, stop + n_key - n_query)


def scores_of(q: Array, key: Array, scale: float) -> tuple[Array, bool]:
    """scale q key^T (..., rows, keys), -inf where a query may not attend; and whether all scores are safe."""
    scores = np.matmul(q, key.swapaxes(-1, -2))
    scores *= scale
    are_safe = bool(scores.max() <= MAX_SAFE_SCORE and scores.min() >= -MAX_SAFE_SCORE)
    n_rows, n_key = scores.shape[-2:]
    corner = scores[..., max(0, n_key - n_rows) :]  # the keys that some row of the block does not see
    bias = causal_bias(n_rows, corner.shape[-1], scores.dtype)
    if are_safe:
        corner += bias
    else:  # NaN - inf and inf - inf are NaN: overwrite the hidden scores
        np.copyto(corner, bias, where=bias < 0)
    return scores, are_safe


@functools.lru_cache(maxsize=16)
def causal_bias(n_rows: int, n_key: int, dtype: np.dtype[np.floating]) -> Array:
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
        size = np.matmul(weights, ones[seen])  # the sum of every row; faster than np.sum
        part = np.matmul(weights, v[..., seen, :])
        np.divide(part, np.maximum(size, np.finfo(size.dtype).tiny), out=y[..., rows, :])
        with np.errstate(divide="ignore"):
            lse[..., rows, :] = np.log(size) + top


def attend_backward(
    scale: float, dq: Array, dkey: Array, dv: Array, dy: Array, q: Array, key: Array, v: Array, y: Array, lse: Array
) -> None:
    """dq, dkey and dv. Where scores are safe, the weights are e^score / e^lse, and dy is divided instead of them."""
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
    """total (B, G, 1, S, D) = or, with add, += the sum of a^T b over the heads that share a key head."""
    if add or a.shape[2] > 1:
        part = np.matmul(a.swapaxes(-1, -2), b)
        part = part if a.shape[2] == 1 else part.sum(axis=2, keepdims=True)
        np.add(total, part, out=total) if add else np.copyto(total, part)
    else:
        np.matmul(a.swapaxes(-1, -2), b, out=total)


def finite(x: Array) -> Array:
    """x, with 0 for the -inf of a row that sees no key: its weights are 0 already."""
    return np.where(np.isneginf(x), 0, x)


class Attention(Blocks):
    """The functions above, for causal attention without mask and dropout; the rest is computed by `math.py`."""

    def attention(
        self, q: Array, key: Array, v: Array, causal: bool, mask: Array | None, dropout: Dropout | None, scale: float
    ) -> tuple[Array, Array]:
        if not supported(q, key, v) or not causal or mask is not None or dropout is not None:
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
        """dq, dkey, dv; parts of one array if they have one shape, as the gradient of a joint projection needs."""
        if not supported(dy, q, key, v, y, lse) or not causal or mask is not None or dropout is not None:
            return super().attention_backward(dy, q, key, v, y, lse, causal, mask, dropout, scale)
        dq, dkey, dv = gradient_arrays(q, key, v)
        self._of_heads(functools.partial(attend_backward, scale), key.shape, dq, dkey, dv, dy, q, key, v, y, lse)
        return dq, dkey, dv

    def _of_heads(self, fn: Callable[..., None], key_shape: tuple[int, ...], *arrays: Array) -> None:
        """fn on parts of the batch with a block of scores each; if those are too few, on parts of the key heads too."""
        n_batch, n_group, n_key, _ = key_shape
        grouped = [split_heads(x, n_group) for x in arrays]
        n_head, n_query = arrays[0].shape[1:3]
        blas.use_threads(1)
        n_parts = len(self._blocks(n_batch * n_head, min(n_query, BLOCK_ROWS) * n_key))
        batches = split(n_batch, n_parts)
        heads = split(n_group, math.ceil(n_parts / len(batches)))
        self._on_all_threads(fn, [tuple(x[b, g] for x in grouped) for b in batches for g in heads])


def supported(*arrays: Array) -> bool:
    """Whether the functions above can be used: arrays of one dtype, not half precision, and none empty."""
    return all(x.size and x.dtype == arrays[0].dtype for x in arrays) and not is_half(arrays[0].dtype)


def gradient_arrays(q: Array, key: Array, v: Array) -> tuple[Array, Array, Array]:
    """Arrays for dq, dkey and dv, which are 0 where no key is seen."""
    if q.shape == key.shape == v.shape:
        n_batch, n_head, n_query, n_embd = q.shape
        joined = np.empty((n_batch, n_query, 3, n_head, n_embd), q.dtype)
        dq, dkey, dv = (joined[:, :, i].transpose(0, 2, 1, 3) for i in range(3))
        return dq, dkey, dv
    dq, dkey, dv = (np.zeros(x.shape, x.dtype) for x in (q, key, v))
    return dq, dkey, dv
