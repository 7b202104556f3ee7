"""The gated activation of Llama's MLP as one op, whose result is recomputed instead of kept."""

from typing import Any

from tensorgrad.autograd import Context, op
from tensorgrad.backend import Array, Backend
from tensorgrad.ops.activation import silu
from tensorgrad.ops.broadcasting import shape_of
from tensorgrad.ops.elementwise import multiply
from tensorgrad.ops.fused import fused

__all__ = ["swiglu"]


def plain_swiglu(gate: Any, up: Any) -> Any:
    """`swiglu` as a composition of plain ops."""
    return multiply(silu(gate), up)


@fused(plain_swiglu)
@op
def swiglu(k: Backend, gate: Array, up: Array, *, ctx: Context) -> tuple[Array, Any]:
    """silu(gate) up (Shazeer 2020, "GLU Variants Improve Transformer", arXiv:2002.05202).

    gate and up of one shape and floating dtype -> the same. Saves both; a linear layer that reads a large result
    recomputes it in backward.
    dgate = dy up silu'(gate), dup = dy silu(gate).
    """
    if shape_of(gate) != shape_of(up):
        raise ValueError(f"swiglu: gate {shape_of(gate)} does not have the shape of up, {shape_of(up)}")
    gate, up = k.floating(gate), k.floating(up)
    y = k.swiglu(gate, up)
    return y, ctx.recomputable(k, lambda dy: k.swiglu_backward(dy, gate, up), y, lambda: k.swiglu(gate, up))
