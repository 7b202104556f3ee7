"""Activation functions: x of any shape and floating dtype -> the same shape and dtype."""

from typing import Any, Literal

from tensorgrad.autograd import op
from tensorgrad.backend import Array, Backend

__all__ = ["gelu", "relu", "sigmoid", "silu"]

Result = tuple[Array, Any]


@op
def sigmoid(k: Backend, x: Array) -> Result:
    """1 / (1 + e^-x). dx = dy y (1 - y)."""
    y = k.sigmoid(k.floating(x))
    return y, lambda dy: dy * y * (1 - y)


@op
def relu(k: Backend, x: Array) -> Result:
    """max(x, 0). dx = dy where x > 0."""
    y = k.xp.maximum(x, 0)
    return y, lambda dy: dy * (y > 0).astype(dy.dtype)


@op
def silu(k: Backend, x: Array) -> Result:
    """x sigmoid(x), also called swish (Hendrycks and Gimpel 2016, arXiv:1606.08415).

    dx = dy s (1 + x (1 - s)), with s = sigmoid(x).
    """
    return k.silu(k.floating(x)), lambda dy: k.silu_backward(dy, x)


@op
def gelu(k: Backend, x: Array, *, approximate: Literal["none", "tanh"] = "none") -> Result:
    """x Phi(x), with Phi the normal distribution function (Hendrycks and Gimpel 2016, arXiv:1606.08415).

    approximate: "none" by the error function; "tanh" by GPT-2's x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) / 2.
    dx = dy (Phi(x) + x phi(x)), with phi the normal density; for "tanh", dy times the derivative of that formula.
    """
    if approximate == "tanh":
        return k.gelu_tanh(k.floating(x)), lambda dy: k.gelu_tanh_backward(dy, x)
    if approximate != "none":
        raise ValueError(f"gelu: approximate={approximate!r} is neither 'none' nor 'tanh'")
    return k.gelu(k.floating(x)), lambda dy: k.gelu_backward(dy, x)
