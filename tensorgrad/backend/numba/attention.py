"""Attention in blocks, every head on one thread (Dao et al. 2022, arXiv:2205.14135).

Nothing of size T x S is ever stored: backward recomputes the attention weights from each query's logsumexp, and the
dropout mask from the same random numbers. The kernels are in attention_forward.py, attention_backward.py and
attention_decode.py.
"""

import numpy as np

from tensorgrad.backend.arrays import Array, Dropout
from tensorgrad.backend.numba.arrays import is_supported
from tensorgrad.backend.numba.attention_backward import backward
from tensorgrad.backend.numba.attention_decode import MAX_DECODE_QUERIES, attend
from tensorgrad.backend.numba.attention_forward import forward
from tensorgrad.backend.numba.dropout import rule
from tensorgrad.backend.numba.linear import Linear
from tensorgrad.backend.numba.macrokernel import MIN_PARALLEL_MULTIPLICATIONS
from tensorgrad.backend.numba.strided import with_contiguous_rows


class Attention(Linear):
    """Attention for float32 and float64. With a mask and more than MAX_DECODE_QUERIES queries, NumPy computes it."""

    def attention(
        self, q: Array, key: Array, v: Array, causal: bool, mask: Array | None, dropout: Dropout | None, scale: float
    ) -> tuple[Array, Array]:
        """softmax(scale q key^T) v for every head, and the logsumexp of every row."""
        supported = is_supported(q, key, v) and q.size > 0 and v.size > 0
        if supported and q.shape[2] <= MAX_DECODE_QUERIES and dropout is None:
            return attend(q, key, v, causal, mask, scale)
        if not supported or q.size * key.shape[2] < MIN_PARALLEL_MULTIPLICATIONS or mask is not None:
            return super().attention(q, key, v, causal, mask, dropout, scale)
        n_batch, n_head, n_query, _ = q.shape
        y = np.empty((n_batch, n_query, n_head, v.shape[3]), q.dtype).transpose(0, 2, 1, 3)  # a token's heads together
        lse = np.empty((n_batch, n_head, n_query), q.dtype)
        q, key, v = map(with_contiguous_rows, (q, key, v))
        forward(q, key, v, y, lse, scale, causal, dropout is not None, rule(dropout), self.threads)
        return y, lse[..., None]

    def attention_backward(
        self, dy: Array, q: Array, key: Array, v: Array, y: Array, lse: Array,
        causal: bool, mask: Array | None, dropout: Dropout | None, scale: float,
    ) -> tuple[Array, Array, Array]:  # fmt: skip
        """dq, dkey and dv, as views of one array if they have one shape: it is the gradient of the joint projection."""
        supported = is_supported(dy, q, key, v, y, lse) and v.size > 0
        if not supported or q.size * key.shape[2] < MIN_PARALLEL_MULTIPLICATIONS or mask is not None:
            return super().attention_backward(dy, q, key, v, y, lse, causal, mask, dropout, scale)
        dq, dkey, dv = _gradients(q, key, v)
        dy, q, key, v, y = map(with_contiguous_rows, (dy, q, key, v, y))
        backward(
            dy, q, key, v, y, lse[..., 0], dq, dkey, dv, scale, causal, dropout is not None, rule(dropout), self.threads
        )  # fmt: skip
        return dq, dkey, dv


def _gradients(q: Array, key: Array, v: Array) -> tuple[Array, Array, Array]:
    n_batch, n_head, n_query, n_embd = q.shape
    if q.shape == key.shape == v.shape:
        joined = np.empty((n_batch, n_query, 3, n_head, n_embd), q.dtype)
        dq, dkey, dv = (joined[:, :, i].transpose(0, 2, 1, 3) for i in range(3))
        return dq, dkey, dv
    return np.empty(q.shape, q.dtype), np.empty(key.shape, q.dtype), np.empty(v.shape, q.dtype)
