"""Softmax and its logarithm."""

from typing import Any

from tensorgrad.autograd import op
from tensorgrad.backend import Array, Backend
from tensorgrad.ops.broadcasting import normalize_axis

__all__ = ["log_softmax", "softmax"]


@op
def softmax(k: Backend, x: Array, *, axis: int = -1) -> tuple[Array, Any]:
    """exp(x) / sum exp(x) along an axis: positive numbers that add up to 1.

    x of any shape, floating -> same shape and dtype. dx = y (dy - sum(y dy)). Saves the result for backward.
    """
    axis = normalize_axis("softmax", axis, x.ndim)
    y = k.softmax(x, axis)
    return y, lambda dy: k.softmax_backward(dy, y, axis)


@op
def log_softmax(k: Backend, x: Array, *, axis: int = -1) -> tuple[Array, Any]:
    """x - log sum exp(x) along an axis. dx = dy - softmax(x) sum(dy). Saves the result, unrounded."""
    axis = normalize_axis("log_softmax", axis, x.ndim)
    y = k.log_softmax(k.wide(k.floating(x)), axis)  # exp in backward would amplify the rounding of half precision
    return k.narrow(y, x.dtype), lambda dy: k.log_softmax_backward(dy, y, axis)
