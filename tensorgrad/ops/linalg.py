"""Products of matrices and tensors."""

from collections.abc import Sequence
from typing import Any

from tensorgrad.autograd import Context, op
from tensorgrad.backend import Array, Backend
from tensorgrad.ops.broadcasting import normalize_axis, unbroadcast

__all__ = ["linear", "matmul", "tensordot"]

Result = tuple[Array, Any]
Axes = int | Sequence[int]


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


@op
def _tensordot(k: Backend, a: Array, b: Array, *, axes: int | tuple[Axes, Axes]) -> Result:
    if isinstance(axes, int):
        if not 0 <= axes <= min(a.ndim, b.ndim):
            raise ValueError(f"tensordot: {a.shape} and {b.shape} have no {axes} axes to sum over")
        axes = (range(a.ndim - axes, a.ndim), range(axes))
    over_a, over_b = (
        [normalize_axis("tensordot", i, x.ndim) for i in ([part] if isinstance(part, int) else part)]
        for x, part in zip((a, b), axes, strict=True)
    )
    if [a.shape[i] for i in over_a] != [b.shape[i] for i in over_b]:
        raise ValueError(f"tensordot: {a.shape} over axes {over_a} does not fit {b.shape} over axes {over_b}")
    free_a = [i for i in range(a.ndim) if i not in over_a]
    free_b = [i for i in range(b.ndim) if i not in over_b]
    n_a, n_b = len(free_a), len(free_b)

    def da(dy: Array) -> Array:
        da = k.xp.tensordot(k.wide(dy), k.wide(b), axes=(range(n_a, n_a + n_b), free_b))
        # its axes are a's free axes, then a's summed axes in the order of the axes of b that they are paired with
        order = free_a + [over_a[over_b.index(i)] for i in sorted(over_b)]
        return da.transpose(sorted(range(len(order)), key=order.__getitem__))

    def db(dy: Array) -> Array:
        db = k.xp.tensordot(k.wide(a), k.wide(dy), axes=(free_a, range(n_a)))
        order = [over_b[over_a.index(i)] for i in sorted(over_a)] + free_b
        return db.transpose(sorted(range(len(order)), key=order.__getitem__))

    y = k.xp.tensordot(k.wide(a), k.wide(b), axes=(over_a, over_b))
    return k.asarray(y, k.xp.result_type(a, b)), (da, db)


def tensordot(a: Any, b: Any, axes: int | tuple[Axes, Axes] = 2) -> Any:
    """The sum of products over pairs of axes: the last `axes` axes of a with the first of b, or two lists of axes.

    The result has a's other axes, then b's.
    """
    return _tensordot(a, b, axes=axes)
