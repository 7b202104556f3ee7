"""Elements by their order or by a condition, and elements replaced or added to."""

from typing import Any

from tensorgrad.autograd import op
from tensorgrad.backend import Array, Backend
from tensorgrad.ops.broadcasting import normalize_axes, normalize_axis
from tensorgrad.ops.elementwise import where
from tensorgrad.ops.indexing import getitem, take_along_axis

__all__ = ["argsort", "count_nonzero", "index_add", "masked_fill", "nonzero", "sort", "topk"]

Result = tuple[Array, Any]
Axis = int | tuple[int, ...] | None


@op
def argsort(k: Backend, x: Array, *, axis: int = -1, descending: bool = False) -> Result:
    """The indices that sort x along an axis; equal elements keep their order. int64."""
    x = k.wide(x)  # CuPy does not sort bfloat16
    if not descending:
        return k.xp.argsort(x, axis=axis, kind="stable"), None
    last = k.xp.flip(k.xp.argsort(k.xp.flip(x, axis), axis=axis, kind="stable"), axis)
    return x.shape[axis] - 1 - last, None


@op
def count_nonzero(k: Backend, x: Array, *, axis: Axis = None, keepdims: bool = False) -> Result:
    """The number of elements that are not 0. int64."""
    return k.xp.sum(x != 0, axis=normalize_axes("count_nonzero", axis, x.ndim), keepdims=keepdims), None


def sort(x: Any, axis: int = -1, descending: bool = False) -> Any:
    """The elements along an axis in ascending order, or descending. dy goes to where each came from."""
    return take_along_axis(x, argsort(x, axis=axis, descending=descending), axis=axis)


def topk(x: Any, k: int, axis: int = -1) -> list[Any]:
    """[values, indices]: the k largest elements along an axis, the largest first, and where they are. int64."""
    axis = normalize_axis("topk", axis, x.ndim)
    if not 0 <= k <= x.shape[axis]:
        raise ValueError(f"topk: k {k} is not between 0 and {x.shape[axis]}, the size of axis {axis}")
    indices = getitem(argsort(x, axis=axis, descending=True), key=(slice(None),) * axis + (slice(k),))
    return [take_along_axis(x, indices, axis=axis), indices]


@op
def nonzero(k: Backend, x: Array) -> tuple[list[Array], None]:
    """The indices of the elements that are not 0, one tensor for each axis: x[tuple(tg.nonzero(x))]. int64."""
    if x.ndim == 0:
        raise ValueError("nonzero: shape () has no axis")
    return list(k.xp.nonzero(x)), None


def masked_fill(x: Any, mask: Any, value: float) -> Any:
    """x with `value` where the mask (bool, broadcast) is true. dx = dy elsewhere."""
    return where(mask, value, x)


@op
def index_add(k: Backend, x: Array, indices: Array, source: Array, *, axis: int = 0) -> Result:
    """x with slice i of source added to slice indices[i] along an axis; repeated indices add up.

    x (..., n, ...), indices (m) integer, source (..., m, ...). dx = dy, dsource = the slices of dy.
    """
    axis, indices = normalize_axis("index_add", axis, x.ndim), k.asarray(indices)
    expected = (*x.shape[:axis], indices.size, *x.shape[axis + 1 :])
    if indices.ndim != 1 or indices.dtype.kind not in "iu" or source.shape != expected:
        raise ValueError(
            f"index_add: indices {indices.dtype} {indices.shape} and source {source.shape} do not fit x {x.shape}: "
            f"(m) integers and {(*x.shape[:axis], 'm', *x.shape[axis + 1 :])} are needed"
        )
    k.check_indices("index_add", indices, x.shape[axis])
    key = (slice(None),) * axis + (indices.copy(),)
    y = k.wide(x).copy()
    k.xp.add.at(y, key, k.wide(source))
    return k.narrow(y, x.dtype), (lambda dy: dy, None, lambda dy: dy[key])
