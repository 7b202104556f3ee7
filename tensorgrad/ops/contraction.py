"""Sums of products over chosen axes."""

from collections.abc import Sequence
from typing import Any

from tensorgrad.autograd import op
from tensorgrad.backend import Array, Backend
from tensorgrad.ops.broadcasting import INTEGER, normalize_axis

__all__ = ["tensordot"]

Result = tuple[Array, Any]
Axes = int | Sequence[int]


@op
def _tensordot(k: Backend, a: Array, b: Array, *, axes: int | tuple[Axes, Axes]) -> Result:
    if isinstance(axes, INTEGER):
        if not 0 <= axes <= min(a.ndim, b.ndim):
            raise ValueError(f"tensordot: {a.shape} and {b.shape} have no {axes} axes to sum over")
        axes = (range(a.ndim - axes, a.ndim), range(axes))
    over_a, over_b = (
        [normalize_axis("tensordot", i, x.ndim) for i in ([part] if isinstance(part, INTEGER) else part)]
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
