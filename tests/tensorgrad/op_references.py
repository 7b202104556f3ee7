"""What an op has to return, in NumPy and float64, written from the definition and not from tensorgrad's code."""

import math
from typing import Any

import numpy as np

erf = np.vectorize(math.erf, otypes=[np.float64])


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def relu(x: Any) -> Any:
    return np.where(x > 0, x, 0.0)


def silu(x: Any) -> Any:
    return x * sigmoid(x)


def gelu(x: Any, approximate: str = "none") -> Any:
    if approximate == "tanh":
        return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    return x / 2 * (1 + erf(x / np.sqrt(2)))


def logsumexp(x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    return np.log(np.exp(x).sum(axis=axis, keepdims=keepdims))


def softmax(x: Any, axis: int = -1) -> Any:
    return np.exp(x) / np.exp(x).sum(axis=axis, keepdims=True)


def log_softmax(x: Any, axis: int = -1) -> Any:
    return np.log(softmax(x, axis))


def layer_norm(x: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Any:
    y = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)
    return y * (1 if weight is None else weight) + (0 if bias is None else bias)


def rms_norm(x: Any, weight: Any = None, eps: float = 1e-6) -> Any:
    return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + eps) * (1 if weight is None else weight)


def linear(x: Any, weight: Any, bias: Any = None) -> Any:
    return np.einsum("...n,mn->...m", x, weight) + (0 if bias is None else bias)


def mlp(x: Any, w1: Any, b1: Any, w2: Any, b2: Any = None, *, approximate: str = "none") -> Any:
    return linear(gelu(linear(x, w1, b1), approximate), w2, b2)


def clip(x: Any, min: float | None = None, max: float | None = None) -> Any:
    return np.minimum(np.maximum(x, -np.inf if min is None else min), np.inf if max is None else max)


def split(x: Any, sections: Any, axis: int = 0) -> list[Any]:
    if isinstance(sections, int):
        return np.split(x, sections, axis)
    return np.split(x, np.cumsum(sections)[:-1], axis)


def cross_entropy(
    logits: Any, targets: Any, ignore_index: int = -100, label_smoothing: float = 0.0, reduction: str = "mean"
) -> Any:
    losses = np.zeros(targets.shape)
    for place, target in np.ndenumerate(targets):
        if target != ignore_index:
            log_p = log_softmax(logits[place])
            losses[place] = -(1 - label_smoothing) * log_p[target] - label_smoothing * log_p.mean()
    if reduction == "none":
        return losses
    kept = (targets != ignore_index).sum()
    return losses.sum() / (max(kept, 1) if reduction == "mean" else 1)


def allowed(n_query: int, n_key: int, causal: bool, mask: Any) -> Any:
    """Which keys (S) each query (T) may attend to; causal: the last query sees every key."""
    seen = np.ones((n_query, n_key), bool)
    if causal:
        for i in range(n_query):
            seen[i, i + n_key - n_query + 1 :] = False
    return seen if mask is None else seen & mask


def attention(q: Any, key: Any, v: Any, causal: bool = False, mask: Any = None, scale: float | None = None) -> Any:
    n_batch, n_head, n_query, size = q.shape
    shared = n_head // key.shape[1]
    scale = 1 / math.sqrt(size) if scale is None else scale
    seen = np.broadcast_to(allowed(n_query, key.shape[2], causal, mask), (n_batch, n_head, n_query, key.shape[2]))
    y = np.zeros((*q.shape[:3], v.shape[3]))
    for b, h, t in np.ndindex(n_batch, n_head, n_query):
        where = seen[b, h, t]
        if where.any():
            y[b, h, t] = softmax(scale * key[b, h // shared][where] @ q[b, h, t]) @ v[b, h // shared][where]
    return y


def rotary_embedding(x: Any, positions: Any, base: float = 10000.0) -> Any:
    half = x.shape[-1] // 2
    turn = np.exp(1j * positions[..., None] * base ** (-np.arange(half) / half))
    z = (x[..., :half] + 1j * x[..., half:]) * turn  # each pair a complex number
    return np.concatenate([z.real, z.imag], axis=-1)


def linear_cross_entropy(x: Any, weight: Any, targets: Any, **options: Any) -> Any:
    return cross_entropy(linear(x, weight), targets, **options)
