"""Products of matrices and tensors."""

from typing import Any

from tensorgrad.autograd import Context, op
from tensorgrad.backend import Array, Backend
from tensorgrad.ops.broadcasting import unbroadcast

__all__ = ["linear", "matmul"]

Result = tuple[Array, Any]


@op
def matmul(k: Backend, a: Array, b: Array) -> Result:
    """a (..., m, n) @ b (..., n, p) -> (..., m, p); leading axes broadcast. A vector a is a row, a vector b a column.

    da = dy b^T, db = a^T dy. Raises ValueError if the inner sizes differ or an operand has no dimension.
    """
    a, b = k.asarray(a), k.asarray(b)
    if a.ndim == 0 or b.ndim == 0:
        raise ValueError(f"matmul: {a.shape} @ {b.shape}: an operand has no dimension; use multiply")
    inner_a, inner_b = a.shape[-1], b.shape[-2 if b.ndim > 1 else 0]
    if inner_a != inner_b:
        raise ValueError(f"matmul: {a.shape} @ {b.shape}: inner sizes {inner_a} and {inner_b} differ")
    a_shape, b_shape = a.shape, b.shape
    left = a[None, :] if a.ndim == 1 else a
    right = b[:, None] if b.ndim == 1 else b
    left_shape, right_shape = left.shape, right.shape

    def matrices(dy: Array) -> Array:
        """dy with an axis of size 1 for each operand that is a vector."""
        rows = dy[..., None] if len(b_shape) == 1 else dy
        return rows[..., None, :] if len(a_shape) == 1 else rows

    def da(dy: Array) -> Array:
        full_da = k.matmul(matrices(dy), right.swapaxes(-1, -2))
        return unbroadcast(k, full_da, left_shape).reshape(a_shape)

    def db(dy: Array) -> Array:
        if len(b_shape) <= 2 and len(a_shape) > 2:  # b is shared by all leading axes of a: one large product
            return k.linear_backward_weight(left, matrices(dy)).reshape(b_shape)
        full_db = k.matmul(left.swapaxes(-1, -2), matrices(dy))
        return unbroadcast(k, full_db, right_shape).reshape(b_shape)

    return k.matmul(a, b), (da, db)


@op
def linear(k: Backend, x: Array, weight: Array, bias: Array | None = None, *, ctx: Context) -> Result:
    """x (..., n) @ weight (m, n)^T + bias (m) -> (..., m).

    dx = dy weight, dweight = dy^T x over all rows, dbias = the sum of dy over all rows.
    """
    if x.ndim == 0 or weight.ndim != 2 or x.shape[-1] != weight.shape[1]:
        raise ValueError(f"linear: x {x.shape} does not fit weight {weight.shape}: (..., n) and (m, n) are needed")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"linear: bias {bias.shape} does not fit weight {weight.shape}: {weight.shape[:1]} is needed")
    saved_x = ctx.saved(0)
    return k.linear(x, weight, bias), (
        lambda dy: k.linear_backward_x(dy, weight),
        lambda dy: k.linear_backward_weight(dy, saved_x()),
        k.linear_backward_bias,
    )
