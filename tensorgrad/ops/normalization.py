"""Layer normalisation and RMS normalisation, alone and together with the residual addition before them."""

from typing import Any

from tensorgrad.autograd import Context, op
from tensorgrad.backend import Array, Backend
from tensorgrad.ops.broadcasting import shape_of
from tensorgrad.ops.elementwise import add
from tensorgrad.ops.fused import fused

__all__ = ["add_layer_norm", "add_rms_norm", "layer_norm", "rms_norm"]

Result = tuple[Any, Any]


@op
def layer_norm(
    k: Backend, x: Array, weight: Array | None = None, bias: Array | None = None, *, eps: float = 1e-5, ctx: Context
) -> Result:  # fmt: skip
    """Rows scaled to mean 0 and variance 1, times weight, plus bias (Ba, Kiros, Hinton 2016, arXiv:1607.06450).

    x (..., n), weight and bias (n) or None -> (..., n). Saves x and each row's mean and 1/std.
    dx = rstd (g - mean(g) - z mean(g z)), with rstd = 1 / std of the rows of x, z = those rows scaled, g = dy weight.
    dweight = the sum of dy z over all rows, dbias = the sum of dy over all rows.
    """
    _check("layer_norm", x, weight, bias)
    y, mean, rstd = k.layer_norm(x, weight, bias, eps)
    needs = ctx.needs_grad
    return y, ctx.recomputable(
        k,
        lambda dy: k.layer_norm_backward(dy, x, weight, mean, rstd, None, needs),
        y,
        lambda: k.layer_norm(x, weight, bias, eps)[0],
    )


@op
def rms_norm(k: Backend, x: Array, weight: Array | None = None, *, eps: float = 1e-6) -> Result:
    """Rows scaled to mean square 1, times weight (Zhang and Sennrich 2019, arXiv:1910.07467).

    x (..., n), weight (n) or None -> (..., n). Saves x and each row's 1/rms.
    dx = rrms (g - z mean(g z)), with rrms = 1 / rms of the rows of x, z = those rows scaled, g = dy weight.
    dweight = the sum of dy z over all rows.
    """
    _check("rms_norm", x, weight)
    y, rrms = k.rms_norm(k.floating(x), weight, eps)
    return y, (
        lambda dy: k.rms_norm_backward_x(dy, x, weight, rrms),
        lambda dy: k.rms_norm_backward_weight(dy, x, rrms),
    )


def plain_add_layer_norm(x: Any, residual: Any, weight: Any = None, bias: Any = None, *, eps: float = 1e-5) -> Any:
    """`add_layer_norm` as a composition of plain ops."""
    total = add(x, residual)
    return [total, layer_norm(total, weight, bias, eps=eps)]


@fused(plain_add_layer_norm)
@op
def add_layer_norm(
    k: Backend, x: Array, residual: Array, weight: Array | None = None, bias: Array | None = None, *, eps: float = 1e-5,
    ctx: Context,
) -> Result:  # fmt: skip
    """[x + residual, layer_norm(x + residual)], in one pass over memory on backends that have a kernel for it.

    x and residual (..., n), weight and bias (n) or None -> both (..., n). Saves the sum and each row's mean and 1/std.
    dx = dresidual = dy[0] + the dx of `layer_norm` for dy[1], and so dweight and dbias.
    """
    _check("add_layer_norm", x, weight, bias)
    _check_alike("add_layer_norm", x, residual)
    total, y, mean, rstd = k.add_layer_norm(x, residual, weight, bias, eps)
    needs_x, needs_residual, needs_weight, needs_bias = ctx.needs_grad
    needs = needs_x or needs_residual, needs_weight, needs_bias

    def backward(dys: list[Array | None]) -> tuple[Array | None, ...]:
        dsum, dy = dys
        if dy is None:  # the normalised rows were not used
            return dsum, dsum, *(k.xp.zeros(total.shape[-1:], total.dtype) if need else None for need in needs[1:])
        dtotal, dweight, dbias = k.layer_norm_backward(dy, total, weight, mean, rstd, dsum, needs)
        return *_for_both(dtotal), dweight, dbias

    return [total, y], ctx.recomputable(k, backward, y, lambda: k.layer_norm(total, weight, bias, eps)[0], slot=1)


def plain_add_rms_norm(x: Any, residual: Any, weight: Any = None, *, eps: float = 1e-6) -> Any:
    """`add_rms_norm` as a composition of plain ops."""
    total = add(x, residual)
    return [total, rms_norm(total, weight, eps=eps)]


@fused(plain_add_rms_norm)
@op
def add_rms_norm(
    k: Backend, x: Array, residual: Array, weight: Array | None = None, *, eps: float = 1e-6, ctx: Context
) -> Result:  # fmt: skip
    """[x + residual, rms_norm(x + residual)]; see `add_layer_norm`. Saves the sum and each row's 1/rms.

    dx = dresidual = dy[0] + the dx of `rms_norm` for dy[1], and so dweight.
    """
    _check("add_rms_norm", x, weight)
    _check_alike("add_rms_norm", x, residual)
    total, y, rrms = k.add_rms_norm(x, residual, weight, eps)
    needs_x, needs_residual, needs_weight = ctx.needs_grad

    def backward(dys: list[Array | None]) -> tuple[Array | None, ...]:
        dsum, dy = dys
        if dy is None:
            return dsum, dsum, k.xp.zeros(total.shape[-1:], total.dtype) if needs_weight else None
        dtotal = k.rms_norm_backward_x(dy, total, weight, rrms, dsum) if needs_x or needs_residual else None
        dweight = k.rms_norm_backward_weight(dy, total, rrms) if needs_weight else None
        return *_for_both(dtotal), dweight

    return [total, y], backward


def _for_both(gradient: Array | None) -> tuple[Array | None, Array | None]:
    """The gradient of both x and residual, as two views: the tape writes into arrays that it owns, never into views."""
    return (None, None) if gradient is None else (gradient.view(), gradient.view())


def _check_alike(name: str, x: Array, residual: Array) -> None:
    if shape_of(residual) != x.shape:
        raise ValueError(f"{name}: residual {shape_of(residual)} does not have the shape of x, {x.shape}")


def _check(name: str, x: Array, *scales: Array | None) -> None:
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ValueError(f"{name}: x {x.shape} has no elements to normalise in its last dimension")
    for scale in scales:
        if scale is not None and shape_of(scale) != x.shape[-1:]:
            raise ValueError(f"{name}: {shape_of(scale)} does not fit x {x.shape}: {x.shape[-1:]} is needed")
