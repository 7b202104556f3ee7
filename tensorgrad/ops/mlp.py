"""The MLP of a transformer block as one op, which does not keep GELU's result."""

from typing import Any, Literal

from tensorgrad.autograd import Context, op
from tensorgrad.backend import Array, Backend
from tensorgrad.ops.activation import gelu
from tensorgrad.ops.broadcasting import shape_of
from tensorgrad.ops.fused import fused
from tensorgrad.ops.linalg import linear

__all__ = ["mlp"]


def plain_mlp(
    x: Any, weight1: Any, bias1: Any, weight2: Any, bias2: Any = None, *, approximate: Literal["none", "tanh"] = "none"
) -> Any:  # fmt: skip
    """`mlp` as a composition of plain ops."""
    return linear(gelu(linear(x, weight1, bias1), approximate=approximate), weight2, bias2)


@fused(plain_mlp)
@op
def mlp(
    k: Backend, x: Array, weight1: Array, bias1: Array | None, weight2: Array, bias2: Array | None = None, *,
    approximate: Literal["none", "tanh"] = "none", ctx: Context,
) -> tuple[Array, Any]:  # fmt: skip
    """gelu(x @ weight1^T + bias1) @ weight2^T + bias2, with `approximate` as gelu has it.

    x (..., n), weight1 (m, n), bias1 (m), weight2 (p, m), bias2 (p) -> (..., p). Saves h = x @ weight1^T + bias1, but
    not gelu(h), unless a GPU has room for it: backward recomputes it together with the gradient of h, overwriting h. A
    second backward, through a retained graph, recomputes h as well.
    With dh = (dy weight2) gelu'(h): dx = dh weight1, dweight1 = dh^T x, dbias1 = sum of dh, dweight2 = dy^T gelu(h),
    dbias2 = sum of dy.
    """
    _check(x, weight1, bias1, weight2, bias2, approximate)
    tanh, saved_x = approximate == "tanh", ctx.saved(0)
    needs_x, needs_weight1, needs_bias1, needs_weight2, needs_bias2 = ctx.needs_grad
    if tanh:
        result, h = k.linear_gelu_tanh(x, weight1, bias1)
    else:
        h = k.linear(x, weight1, bias1)
        result = k.gelu(h)
    y = k.linear(result, weight2, bias2)
    saved = [(h, result if tanh and k.keeps_activation(result) else None)]
    del h, result

    def backward(dy: Array) -> tuple[Array | None, ...]:
        h, activation = saved.pop() if saved else (k.linear(saved_x(), weight1, bias1), None)
        if tanh:
            dh, activation, dbias1 = k.linear_gelu_tanh_backward(dy, weight2, h, activation, needs_bias1)
        else:
            dh, activation = k.gelu_backward(k.linear_backward_x(dy, weight2), h), k.gelu(h)
            dbias1 = k.linear_backward_bias(dh) if needs_bias1 else None
        dweight2 = k.linear_backward_weight(dy, activation) if needs_weight2 else None
        del h, activation  # frees the largest arrays before the next products need memory
        dweight1 = k.linear_backward_weight(dh, saved_x()) if needs_weight1 else None
        return (
            k.linear_backward_x(dh, weight1) if needs_x else None,
            dweight1,
            dbias1,
            dweight2,
            k.linear_backward_bias(dy) if needs_bias2 else None,
        )

    return y, backward


def _check(
    x: Array, weight1: Array, bias1: Array | None, weight2: Array, bias2: Array | None, approximate: str
) -> None:  # fmt: skip
    if approximate not in ("none", "tanh"):
        raise ValueError(f"mlp: approximate={approximate!r} is neither 'none' nor 'tanh'")
    if x.ndim == 0 or weight1.ndim != 2 or x.shape[-1] != weight1.shape[1]:
        raise ValueError(f"mlp: x {x.shape} does not fit weight1 {weight1.shape}: (..., n) and (m, n) are needed")
    if weight2.ndim != 2 or weight2.shape[1] != weight1.shape[0]:
        raise ValueError(
            f"mlp: weight2 {weight2.shape} does not fit weight1 {weight1.shape}: (p, m) and (m, n) are needed"
        )  # fmt: skip
    for n, bias, weight in ((1, bias1, weight1), (2, bias2, weight2)):
        if bias is not None and shape_of(bias) != weight.shape[:1]:
            raise ValueError(
                f"mlp: bias{n} {shape_of(bias)} does not fit weight{n} {weight.shape}: {weight.shape[:1]} is needed"
            )
