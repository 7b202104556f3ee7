"""What ops have to return, written from their definitions and not from tensorgrad's code, where a line is too short.

`softmax` is the reference of that op in NumPy and float64. `torch_prod` is that of `prod` in PyTorch: its first
argument is the module torch.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

erf = np.vectorize(math.erf, otypes=[np.float64])


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def relu(x: Any) -> Any:
    return np.where(x > 0, x, 0.0)


def silu(x: Any) -> Any:
    return x * sigmoid(x)


def swiglu(gate: Any, up: Any) -> Any:
    return silu(gate) * up


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


def add_layer_norm(x: Any, residual: Any, *scales: Any, eps: float) -> list[Any]:
    return [x + residual, layer_norm(x + residual, *scales, eps=eps)]


def add_rms_norm(x: Any, residual: Any, *scales: Any, eps: float) -> list[Any]:
    return [x + residual, rms_norm(x + residual, *scales, eps=eps)]


def pad(x: Any, pad_width: Any, constant: float) -> Any:
    return np.pad(x, pad_pairs(pad_width, x.ndim), constant_values=constant)


def pad_pairs(width: Any, ndim: int) -> list[tuple[int, int]]:
    """One (before, after) an axis."""
    if isinstance(width, int):
        return [(width, width)] * ndim
    return [width] * ndim if isinstance(width[0], int) else list(width)


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


# --- the same in PyTorch ---------------------------------------------------------------------------


def torch_astype(t: Any, x: Any, dtype: str) -> Any:
    return x.to(getattr(t, dtype))


def both(t: Any, a: Any, b: Any) -> Any:
    """Two tensors, where one may be a Python number."""
    like = a if isinstance(a, t.Tensor) else b
    return [x if isinstance(x, t.Tensor) else t.tensor(x, dtype=like.dtype) for x in (a, b)]


def torch_maximum(t: Any, a: Any, b: Any) -> Any:
    return t.maximum(*both(t, a, b))


def torch_minimum(t: Any, a: Any, b: Any) -> Any:
    return t.minimum(*both(t, a, b))


def torch_remainder(t: Any, a: Any, b: Any) -> Any:
    return t.remainder(*both(t, a, b))


def torch_logaddexp(t: Any, a: Any, b: Any) -> Any:
    return t.logaddexp(*both(t, a, b))


def axes_of(x: Any, axis: Any) -> Any:
    return tuple(range(x.ndim)) if axis is None else axis


def torch_max(t: Any, x: Any, axis: Any, keepdims: bool) -> Any:
    return t.amax(x, axes_of(x, axis), keepdims)


def torch_min(t: Any, x: Any, axis: Any, keepdims: bool) -> Any:
    return t.amin(x, axes_of(x, axis), keepdims)


def torch_logsumexp(t: Any, x: Any, axis: Any, keepdims: bool) -> Any:
    return t.logsumexp(x, axes_of(x, axis), keepdims)


def torch_flip(t: Any, x: Any, axis: Any) -> Any:
    return t.flip(x, np.atleast_1d(axes_of(x, axis)).astype(int).tolist())


def torch_prod(t: Any, x: Any, axis: Any, keepdims: bool) -> Any:
    axes = axes_of(x, axis)
    for a in sorted((a % x.ndim for a in (axes if isinstance(axes, tuple) else (axes,))), reverse=True):
        x = t.prod(x, dim=a, keepdim=keepdims)
    return x


def torch_split(t: Any, x: Any, sections: Any, axis: int) -> Any:
    return t.split(x, [x.shape[axis] // sections] * sections if isinstance(sections, int) else sections, axis)


def read(t: Any, x: Any, reader: Callable[[Any], Any]) -> Any:
    """The elements of x that NumPy reads: `reader` finds their positions by reading an array of positions."""
    positions = reader(np.arange(x.numel()).reshape(x.shape))
    return x.reshape(-1)[t.from_numpy(np.array(positions))]


def torch_getitem(t: Any, x: Any, key: Any) -> Any:
    return read(t, x, lambda n: n[key])


def torch_take(t: Any, x: Any, indices: Any, axis: int) -> Any:
    return read(t, x, lambda n: np.take(n, indices.numpy(), axis))


def torch_take_along_axis(t: Any, x: Any, indices: Any, axis: int) -> Any:
    return read(t, x, lambda n: np.take_along_axis(n, indices.numpy(), axis))


def torch_repeat(t: Any, x: Any, repeats: Any, axis: Any) -> Any:
    if axis is None:
        x, axis = x.reshape(-1), 0
    return t.repeat_interleave(x, repeats if isinstance(repeats, int) else t.from_numpy(repeats), dim=axis)


def torch_pad(t: Any, x: Any, pad_width: Any, constant: float) -> Any:
    pairs = pad_pairs(pad_width, x.ndim)[::-1]  # the last axis first
    return t.nn.functional.pad(x, [n for pair in pairs for n in pair], value=constant)


def torch_cross_entropy(t: Any, logits: Any, targets: Any, **options: Any) -> Any:
    rows = logits.reshape(-1, logits.shape[-1])
    loss = t.nn.functional.cross_entropy(rows, targets.reshape(-1), **options)
    return loss.reshape(targets.shape) if options["reduction"] == "none" else loss


def torch_linear_cross_entropy(t: Any, x: Any, weight: Any, targets: Any, **options: Any) -> Any:
    return torch_cross_entropy(t, t.nn.functional.linear(x, weight), targets, **options)


def torch_attention(t: Any, q: Any, key: Any, v: Any, causal: bool, mask: Any, scale: float | None) -> Any:
    shared = q.shape[1] // key.shape[1]
    key, v = (x.repeat_interleave(shared, dim=1) for x in (key, v))
    scores = (q @ key.mT) * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    seen = t.from_numpy(np.array(allowed(q.shape[2], key.shape[2], causal, mask))).broadcast_to(scores.shape)
    p = t.softmax(scores.masked_fill(~seen, -1e30), dim=-1)
    return (p * seen.any(-1, keepdim=True)) @ v  # a query that may attend to nothing gives zeros


def torch_rotary_embedding(t: Any, x: Any, positions: Any, base: float) -> Any:
    half = x.shape[-1] // 2
    angle = positions[..., None] * base ** (-t.arange(half, dtype=t.float64) / half)
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return t.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def torch_mlp(t: Any, x: Any, w1: Any, b1: Any, w2: Any, b2: Any, approximate: str) -> Any:
    f = t.nn.functional
    return f.linear(f.gelu(f.linear(x, w1, b1), approximate=approximate), w2, b2)


def torch_swiglu(t: Any, gate: Any, up: Any) -> Any:
    return t.nn.functional.silu(gate) * up


def torch_add_layer_norm(t: Any, x: Any, residual: Any, *scales: Any, eps: float) -> list[Any]:
    return [x + residual, t.nn.functional.layer_norm(x + residual, x.shape[-1:], *scales, eps=eps)]


def torch_add_rms_norm(t: Any, x: Any, residual: Any, *scales: Any, eps: float) -> list[Any]:
    return [x + residual, t.nn.functional.rms_norm(x + residual, x.shape[-1:], *scales, eps=eps)]
