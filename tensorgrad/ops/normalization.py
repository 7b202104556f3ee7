"""Layer normalisation and its simpler sister."""

from collections.abc import Callable
from typing import Any

from tensorgrad.autograd import op
from tensorgrad.backend import Array, Backend
from tensorgrad.ops.broadcasting import shape_of

Result = tuple[Array, Any]


@op
def layer_norm(
    k: Backend, x: Array, weight: Array | None = None, bias: Array | None = None, *, eps: float = 1e-5
) -> Result:
    """Every row with mean 0 and variance 1, times weight, plus bias (Ba, Kiros, Hinton 2016, arXiv:1607.06450).

    x (..., n), weight and bias (n) or None -> (..., n). Saves x and each row's mean and 1/std.
    """
    _check("layer_norm", x, weight, bias)
    y, mean, rstd = k.layer_norm(x, weight, bias, eps)
    return y, (
        lambda dy: k.layer_norm_backward_x(dy, x, weight, mean, rstd),
        lambda dy: k.layer_norm_backward_weight(dy, x, mean, rstd),
        k.linear_backward_bias,
    )


@op
def rms_norm(k: Backend, x: Array, weight: Array | None = None, *, eps: float = 1e-6) -> Result:
    """Every row with mean square 1, times weight (Zhang and Sennrich 2019, arXiv:1910.07467).

    x (..., n), weight (n) or None -> (..., n). Saves x and each row's 1/rms.
    """
    _check("rms_norm", x, weight)
    y, rrms = k.rms_norm(x, weight, eps)
    return y, (
        lambda dy: k.rms_norm_backward_x(dy, x, weight, rrms),
        lambda dy: k.rms_norm_backward_weight(dy, x, rrms),
    )


@op
def add_layer_norm(
    k: Backend, x: Array, residual: Array, weight: Array | None = None, bias: Array | None = None, *, eps: float = 1e-5
) -> tuple[list[Array], Any]:
    """[x + residual, layer_norm of that]: one step of a residual stream, in one pass where the backend has one.

    x and residual (..., n), weight and bias (n) or None -> both (..., n). Saves the sum and each row's mean and 1/std.
    """
    _check("add_layer_norm", x, weight, bias)
    _check_alike("add_layer_norm", x, residual)
    total, y, mean, rstd = k.add_layer_norm(x, residual, weight, bias, eps)
    dx = _of_both(lambda dy, dsum: k.layer_norm_backward_x(dy, total, weight, mean, rstd, dsum))
    return [total, y], (
        dx,
        dx,
        _of_rows(k, total, lambda dy: k.layer_norm_backward_weight(dy, total, mean, rstd)),
        _of_rows(k, total, k.linear_backward_bias),
    )


@op
def add_rms_norm(
    k: Backend, x: Array, residual: Array, weight: Array | None = None, *, eps: float = 1e-6
) -> tuple[list[Array], Any]:
    """[x + residual, rms_norm of that], as `add_layer_norm`. Saves the sum and each row's 1/rms."""
    _check("add_rms_norm", x, weight)
    _check_alike("add_rms_norm", x, residual)
    total, y, rrms = k.add_rms_norm(x, residual, weight, eps)
    dx = _of_both(lambda dy, dsum: k.rms_norm_backward_x(dy, total, weight, rrms, dsum))
    return [total, y], (dx, dx, _of_rows(k, total, lambda dy: k.rms_norm_backward_weight(dy, total, rrms)))


def _of_both(gradient: Callable[[Array, Array | None], Array]) -> Callable[[list[Array | None]], Array]:
    """The gradient of x and residual alike: made once for the two, and views, so that the tape adds to neither."""
    made: list[Any] = [None, None]  # for which gradients of the results, and what

    def dx(dys: list[Array | None]) -> Array:
        dsum, dy = dys
        if made[0] is not dys:
            made[:] = dys, dsum if dy is None else gradient(dy, dsum)
        return made[1].view()

    return dx


def _of_rows(k: Backend, x: Array, gradient: Callable[[Array], Array]) -> Callable[[list[Array | None]], Array]:
    """The gradient of weight or bias: from that of the normalised rows, 0 if nothing was made of them."""
    return lambda dys: k.xp.zeros(x.shape[-1:], x.dtype) if dys[1] is None else gradient(dys[1])


def _check_alike(name: str, x: Array, residual: Array) -> None:
    if shape_of(residual) != x.shape:
        raise ValueError(f"{name}: residual {shape_of(residual)} does not have the shape of x, {x.shape}")


def _check(name: str, x: Array, *scales: Array | None) -> None:
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ValueError(f"{name}: x {x.shape} has no elements to normalise in its last dimension")
    for scale in scales:
        if scale is not None and shape_of(scale) != x.shape[-1:]:
            raise ValueError(f"{name}: {shape_of(scale)} does not fit x {x.shape}: {x.shape[-1:]} is needed")
