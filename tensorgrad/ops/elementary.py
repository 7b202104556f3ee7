"""Elementary functions that a GPT does without."""

import math
from typing import Any

from tensorgrad.autograd import op
from tensorgrad.backend import Array, Backend
from tensorgrad.ops.broadcasting import shape_of, unbroadcast
from tensorgrad.ops.elementwise import multiply, where

__all__ = ["cos", "erf", "expm1", "leaky_relu", "log1p", "logaddexp", "reciprocal", "sign", "sin", "softplus"]

Result = tuple[Array, Any]


@op
def log1p(k: Backend, x: Array) -> Result:
    """log(1 + x), with all digits where x is small. dx = dy / (1 + x)."""
    return k.narrow(k.xp.log1p(k.wide(k.floating(x))), x.dtype), lambda dy: dy / (1 + x)


@op
def expm1(k: Backend, x: Array) -> Result:
    """e^x - 1, with all digits where x is small. dx = dy (y + 1)."""
    y = k.narrow(k.xp.expm1(k.wide(k.floating(x))), x.dtype)
    return y, lambda dy: dy * (y + 1)


@op
def logaddexp(k: Backend, a: Array, b: Array) -> Result:
    """log(e^a + e^b), without overflow. da = dy sigmoid(a - b), db = dy sigmoid(b - a)."""
    a_shape, b_shape = shape_of(a), shape_of(b)
    wide_a, wide_b = (k.wide(k.floating(x)) if hasattr(x, "dtype") else x for x in (a, b))
    y = k.narrow(k.xp.logaddexp(wide_a, wide_b), k.xp.result_type(a, b))
    return y, (
        lambda dy: unbroadcast(k, dy * k.sigmoid(a - b), a_shape),
        lambda dy: unbroadcast(k, dy * k.sigmoid(b - a), b_shape),
    )


def leaky_relu(x: Any, negative_slope: float = 0.01) -> Any:
    """x where it is positive, negative_slope x elsewhere (Maas et al. 2013).

    dx = dy where x is positive, negative_slope dy elsewhere.
    """
    return where(x > 0, x, multiply(x, negative_slope))


@op
def softplus(k: Backend, x: Array) -> Result:
    """log(1 + e^x), a smooth max(x, 0) (Dugas et al. 2001). dx = dy sigmoid(x)."""
    y = k.narrow(k.xp.logaddexp(k.wide(k.floating(x)), 0), x.dtype)  # max(x, 0) + log(1 + e^-|x|): nothing overflows
    return y, lambda dy: dy * k.sigmoid(x)


@op
def erf(k: Backend, x: Array) -> Result:
    """The error function. dx = dy 2/sqrt(pi) e^(-x^2)."""

    def backward(dy: Array) -> Array:
        wide = k.wide(x)
        return dy * (2 / math.sqrt(math.pi) * k.xp.exp(-wide * wide))

    return k.erf(k.floating(x)), backward


@op
def sign(k: Backend, x: Array) -> Result:
    """-1, 0 or 1. dx = 0."""
    return k.xp.sign(x), k.xp.zeros_like


@op
def reciprocal(k: Backend, x: Array) -> Result:
    """1 / x. dx = -dy y^2."""
    y = 1 / x
    return y, lambda dy: -dy * y * y


@op
def sin(k: Backend, x: Array) -> Result:
    """Sine of x in radians. dx = dy cos x."""
    return k.xp.sin(k.floating(x)), lambda dy: dy * k.xp.cos(x)


@op
def cos(k: Backend, x: Array) -> Result:
    """Cosine of x in radians. dx = -dy sin x."""
    return k.xp.cos(k.floating(x)), lambda dy: -dy * k.xp.sin(x)
