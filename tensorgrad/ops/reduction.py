"""Reductions over one axis, several, or all (axis None). Sums of half precision are computed in float32."""

import math
from typing import Any

from tensorgrad.autograd import op
from tensorgrad.backend import Array, Backend
from tensorgrad.backend.arrays import sum_dtype
from tensorgrad.ops.broadcasting import Shape, normalize_axes, normalize_axis

__all__ = ["cumulative_sum", "logsumexp", "max", "mean", "min", "prod", "std", "sum", "var"]

Result = tuple[Array, Any]
Axes = tuple[int, ...]
Axis = int | Axes | None


def _kept(shape: Shape, axes: tuple[int, ...]) -> Shape:
    """The shape of the result with keepdims: 1 along the reduced axes."""
    return tuple(1 if i in axes else n for i, n in enumerate(shape))


def _count(shape: Shape, axes: tuple[int, ...]) -> int:
    return math.prod(shape[a] for a in axes)


@op
def sum(k: Backend, x: Array, *, axis: Axis = None, keepdims: bool = False) -> Result:
    """The sum. dx = dy, broadcast to x's shape."""
    axes, shape = normalize_axes("sum", axis, x.ndim), x.shape
    kept = _kept(shape, axes)
    return k.sum(x, axes, keepdims), lambda dy: k.xp.broadcast_to(dy.reshape(kept), shape)


@op
def mean(k: Backend, x: Array, *, axis: Axis = None, keepdims: bool = False) -> Result:
    """The mean. dx = dy / n, broadcast to x's shape."""
    axes, shape = normalize_axes("mean", axis, x.ndim), x.shape
    kept, n = _kept(shape, axes), _count(shape, axes)
    if n == 0:
        raise ValueError(f"mean: shape {shape} has no elements along axis {axis}")
    y = k.narrow(k.wide(x).mean(axis=axes, keepdims=keepdims), x.dtype)
    return y, lambda dy: k.xp.broadcast_to((k.wide(dy) / n).reshape(kept), shape)  # n may be more than float16 holds


def _extremum(k: Backend, name: str, x: Array, axis: Axis, keepdims: bool) -> Result:
    axes = normalize_axes(name, axis, x.ndim)
    kept = _kept(x.shape, axes)
    if _count(x.shape, axes) == 0:
        raise ValueError(f"{name}: shape {x.shape} has no elements along axis {axis}")
    y = (x.max if name == "max" else x.min)(axis=axes, keepdims=True)

    def backward(dy: Array) -> Array:
        is_extreme = x == y
        share = k.wide(dy).reshape(kept)
        share = share / is_extreme.sum(axis=axes, keepdims=True).astype(share.dtype)
        return k.xp.where(is_extreme, share, k.xp.zeros_like(share))

    return y if keepdims else y.squeeze(axes), backward


@op
def max(k: Backend, x: Array, *, axis: Axis = None, keepdims: bool = False) -> Result:
    """The largest element. dy goes to it, in equal parts where several elements are the largest."""
    return _extremum(k, "max", x, axis, keepdims)


@op
def min(k: Backend, x: Array, *, axis: Axis = None, keepdims: bool = False) -> Result:
    """The smallest element. dy goes to it, in equal parts where several elements are the smallest."""
    return _extremum(k, "min", x, axis, keepdims)


@op
def prod(k: Backend, x: Array, *, axis: Axis = None, keepdims: bool = False) -> Result:
    """The product. dx_i = dy times the product of all other elements, computed without division: x_i may be 0."""
    xp = k.xp
    axes, shape = normalize_axes("prod", axis, x.ndim), x.shape
    rest = tuple(i for i in range(x.ndim) if i not in axes)
    kept = _kept(shape, axes)
    y = k.wide(x).prod(axis=axes, keepdims=keepdims).astype(sum_dtype(x.dtype), copy=False)

    def backward(dy: Array) -> Array:
        moved = k.wide(x).transpose(*rest, *axes)  # with the reduced axes last
        rows = moved.reshape(*moved.shape[: len(rest)], _count(shape, axes))
        ones = xp.ones_like(rows[..., :1])
        before = xp.concatenate([ones, xp.cumprod(rows, axis=-1)[..., :-1]], axis=-1)
        after = xp.concatenate([ones, xp.cumprod(rows[..., ::-1], axis=-1)[..., :-1]], axis=-1)[..., ::-1]
        others = (before * after)[..., : rows.shape[-1]].reshape(moved.shape)
        inverse = sorted(range(len(shape)), key=(*rest, *axes).__getitem__)
        return dy.reshape(kept) * others.transpose(inverse)

    return y, backward


def _moments(k: Backend, name: str, x: Array, axis: Axis, correction: float) -> tuple[Axes, Array, Array, float]:
    """The axes, the mean and variance along them (axes kept, at least float32), and the divisor n - correction."""
    axes = normalize_axes(name, axis, x.ndim)
    n = _count(x.shape, axes) - correction
    if n <= 0:
        raise ValueError(f"{name}: shape {x.shape} along axis {axis} with correction {correction} divides by {n}")
    wide = k.wide(x)
    mean = wide.mean(axis=axes, keepdims=True)
    deviation = wide - mean
    return axes, mean, (deviation * deviation).sum(axis=axes, keepdims=True) / n, n


@op
def var(k: Backend, x: Array, *, axis: Axis = None, correction: float = 0, keepdims: bool = False) -> Result:
    """The variance, divided by n - correction. dx = 2 dy (x - mean) / (n - correction). Saves x and the mean."""
    axes, mean, y, n = _moments(k, "var", x, axis, correction)
    kept = _kept(x.shape, axes)
    y = k.narrow(y if keepdims else y.squeeze(axes), x.dtype)
    return y, lambda dy: (k.wide(x) - mean) * (2 / n * k.wide(dy)).reshape(kept)


@op
def std(k: Backend, x: Array, *, axis: Axis = None, correction: float = 0, keepdims: bool = False) -> Result:
    """The square root of the variance. dx = dy (x - mean) / ((n - correction) std), 0 where std is 0."""
    axes, mean, variance, n = _moments(k, "std", x, axis, correction)
    kept, y = _kept(x.shape, axes), k.xp.sqrt(variance)

    def backward(dy: Array) -> Array:
        return (k.wide(x) - mean) * (k.wide(dy).reshape(kept) * (y > 0) / (n * (y + (y == 0))))

    return k.narrow(y if keepdims else y.squeeze(axes), x.dtype), backward


@op
def logsumexp(k: Backend, x: Array, *, axis: Axis = None, keepdims: bool = False) -> Result:
    """log sum exp(x), without overflow. dx = dy exp(x - y), 0 where all x are -inf."""
    axes = normalize_axes("logsumexp", axis, x.ndim)
    top, log_sum = k.logsumexp(k.floating(x), axes)  # y unrounded: exp in backward would amplify the error
    y = k.narrow(top + log_sum, x.dtype)

    def backward(dy: Array) -> Array:
        return dy.reshape(top.shape) * k.xp.exp(k.wide(x) - top - k.xp.where(log_sum == -k.xp.inf, 0, log_sum))

    return y if keepdims else y.squeeze(axes), backward


@op
def cumulative_sum(k: Backend, x: Array, *, axis: int | None = None) -> Result:
    """The sum of all elements up to each one; axis None is that of a vector. dx is the sum of dy from each one on."""
    if axis is None and x.ndim != 1:
        raise ValueError(f"cumulative_sum: axis is needed for shape {x.shape}")
    axis = 0 if axis is None else normalize_axis("cumulative_sum", axis, x.ndim)
    flip = k.xp.flip

    def running(a: Array) -> Array:
        return k.xp.cumsum(k.wide(a), axis=axis).astype(sum_dtype(a.dtype), copy=False)

    return running(x), lambda dy: flip(running(flip(dy, axis)), axis)
