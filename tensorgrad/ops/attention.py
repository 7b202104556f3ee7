"""Scaled dot-product attention and rotary positions."""

import math
from typing import Any

from tensorgrad.autograd import Variable, op
from tensorgrad.backend import Array, Backend, backend_of
from tensorgrad.backend.arrays import snapshot
from tensorgrad.ops.broadcasting import broadcasts_to
from tensorgrad.ops.dropout import draw, dropout
from tensorgrad.ops.elementwise import multiply, where
from tensorgrad.ops.fused import fused
from tensorgrad.ops.linalg import matmul
from tensorgrad.ops.manipulation import matrix_transpose, repeat
from tensorgrad.ops.softmax import softmax

__all__ = ["attention", "rotary_embedding"]


def plain_attention(
    q: Any, key: Any, v: Any, *,
    causal: bool = False, mask: Any = None, dropout_p: float = 0.0, scale: float | None = None,
) -> Any:  # fmt: skip
    """`attention` as a composition of plain ops, most of which keep an array (B, H, T, S)."""
    k = backend_of("attention", [q.data])
    n_shared = q.shape[1] // key.shape[1]
    if n_shared > 1:
        key, v = repeat(key, repeats=n_shared, axis=1), repeat(v, repeats=n_shared, axis=1)  # (B, H, S, D)
    T, S = q.shape[2], key.shape[2]
    visible = k.xp.tri(T, S, S - T, dtype=bool) if causal else k.xp.ones((T, S), dtype=bool)
    if mask is not None:
        visible = visible & k.asarray(mask.data if isinstance(mask, Variable) else mask)  # (B, H, T, S), or broadcasts
    scores = multiply(matmul(q, matrix_transpose(key)), 1 / math.sqrt(q.shape[3]) if scale is None else float(scale))
    # Not -inf: the softmax of a row that is -inf throughout is nan, and so is its gradient.
    lowest = float(k.xp.finfo(scores.dtype).min)
    weights = softmax(where(visible, scores, lowest), axis=-1)
    weights = where(visible, weights, 0.0)  # a query that may attend to nothing gives zeros
    return matmul(dropout(weights, p=dropout_p), v)


@fused(plain_attention)
@op
def attention(
    k: Backend, q: Array, key: Array, v: Array, *,
    causal: bool = False, mask: Any = None, dropout_p: float = 0.0, scale: float | None = None,
) -> tuple[Array, Any]:  # fmt: skip
    """softmax(scale q key^T) v for every head (Vaswani et al. 2017, arXiv:1706.03762).

    q (B, H, T, D); key, v (B, G, S, D) with H a multiple of G: H / G query heads share each of them (arXiv:2305.13245)
    -> (B, H, T, D). scale: 1 / sqrt(D) unless given. causal: query i attends to keys j <= i + S - T, the last query to
    all. mask: bool, True where a query may attend, broadcastable to (B, H, T, S). The result of a query that may attend
    to no key is 0. dropout_p drops attention weights. Saves the operands, the result and each row's logsumexp, but no
    T x S matrix. Raises ValueError for shapes that do not fit, TypeError for a mask that is not bool.
    With P the softmax and dS = P (dy v^T - sum(dy y)): dq = scale dS key, dkey = scale dS^T q, dv = P^T dy.
    """
    if not q.ndim == key.ndim == v.ndim == 4 or key.shape[:3] != v.shape[:3] or key.shape[3] != q.shape[3]:
        shapes = f"q {q.shape}, key {key.shape}, v {v.shape}"
        raise ValueError(f"attention: {shapes} are not (B, H, T, D), (B, G, S, D), (B, G, S, D)")
    if q.shape[0] != key.shape[0] or key.shape[1] == 0 or q.shape[1] % key.shape[1]:
        rule = "equal batch sizes, and a number of q's heads that is a multiple of key's, are needed"
        raise ValueError(f"attention: q {q.shape} does not fit key {key.shape}: {rule}")
    allowed = None if mask is None else snapshot(k.asarray(mask.data if isinstance(mask, Variable) else mask))
    if allowed is not None and allowed.dtype != bool:
        raise TypeError(f"attention: mask has dtype {allowed.dtype}; bool is needed, True where a query may attend")
    full = (*q.shape[:3], key.shape[2])
    if allowed is not None and not broadcasts_to(allowed.shape, full):
        raise ValueError(f"attention: mask {allowed.shape} does not broadcast to {full}, (B, H, T, S)")
    dropout = draw("attention", dropout_p) if dropout_p else None
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else float(scale)  # a NumPy float64 would promote float32
    y, lse = k.attention(q, key, v, causal, allowed, dropout, scale)
    return y, lambda dy: k.attention_backward(dy, q, key, v, y, lse, causal, allowed, dropout, scale)


@op
def rotary_embedding(k: Backend, x: Array, positions: Array, *, base: float = 10000.0) -> tuple[Array, Any]:
    """Rotate each pair (x[i], x[i + D/2]) by the angle positions * base^(-2i/D) (Su et al. 2021, arXiv:2104.09864).

    x (..., T, D) with D even, positions (T) or broadcastable to (..., T) -> same shape and dtype as x.
    dx = dy rotated by the opposite angle.
    """
    if x.ndim < 2 or x.shape[-1] % 2:
        raise ValueError(f"rotary_embedding: x {x.shape} is not (..., T, D) with D even")
    positions = snapshot(k.asarray(positions))
    if not broadcasts_to(positions.shape, x.shape[:-1]):
        raise ValueError(f"rotary_embedding: positions {positions.shape} do not broadcast to (..., T) {x.shape[:-1]}")
    y = k.rotary_embedding(x, positions, base)
    return y, lambda dy: k.rotary_embedding(dy, positions, base, inverse=True)
