"""Reading by index. Backward adds dy at the indices that were read; repeated indices add up."""

from typing import Any

from tensorgrad.autograd import Variable, op
from tensorgrad.backend import Array, Backend
from tensorgrad.backend.arrays import snapshot
from tensorgrad.ops.broadcasting import normalize_axis

__all__ = ["getitem", "take", "take_along_axis"]

Result = tuple[Array, Any]


def index_key(key: Any) -> Any:
    """Copy an index expression, with arrays in place of its tensors."""
    if isinstance(key, tuple):
        return tuple(index_key(part) for part in key)
    key = key.data if isinstance(key, Variable) else key
    return key.copy() if hasattr(key, "copy") else key


def _is_basic(key: Any) -> bool:
    """Whether indexing returns a view: only slices, ints, None and Ellipsis, which read no element twice."""
    parts = key if isinstance(key, tuple) else (key,)
    return all(
        part is None or part is Ellipsis or (isinstance(part, slice | int) and not isinstance(part, bool))
        for part in parts
    )  # fmt: skip


@op
def getitem(k: Backend, x: Array, *, key: Any) -> Result:
    """x[key]: slices, ints, integer arrays and boolean masks, as in NumPy.

    dx = dy at the key, 0 elsewhere; an element taken several times gets the sum.
    """
    key = index_key(key)
    shape, basic = x.shape, _is_basic(key)

    def backward(dy: Array) -> Array:
        if basic:
            dx = k.xp.zeros(shape, dy.dtype)
            dx[key] = dy
            return dx
        return _add_at(k, shape, key, dy)

    return x[key], backward


@op
def take(k: Backend, x: Array, indices: Array, *, axis: int | None = None) -> Result:
    """Elements along an axis by integer indices: x (..., n, ...), indices (...) -> (..., indices.shape, ...).

    axis may be None if x has one dimension. Raises IndexError for an index out of range.
    dx = dy at the indices, 0 elsewhere; an element taken several times gets the sum.
    """
    if axis is None and x.ndim != 1:
        raise ValueError(f"take: axis is needed for shape {x.shape}")
    axis, shape = normalize_axis("take", 0 if axis is None else axis, x.ndim), x.shape
    indices = _integers(k, "take", indices)
    k.check_indices("take", indices, shape[axis])
    key = (slice(None),) * axis + (indices,)
    return k.xp.take(x, indices, axis=axis), lambda dy: _add_at(k, shape, key, dy)


@op
def take_along_axis(k: Backend, x: Array, indices: Array, *, axis: int = -1) -> Result:
    """One element for every index. x and indices have equal shapes except along `axis`; the result has that of indices.

    dx = dy at the indices, 0 elsewhere; an element taken several times gets the sum.
    """
    axis, shape, xp = normalize_axis("take_along_axis", axis, x.ndim), x.shape, k.xp
    indices = _integers(k, "take_along_axis", indices)
    if indices.ndim != x.ndim:
        raise ValueError(f"take_along_axis: indices {indices.shape} and x {shape} differ in their number of dimensions")
    k.check_indices("take_along_axis", indices, shape[axis])
    sizes = [i if d == axis else max(i, n) for d, (i, n) in enumerate(zip(indices.shape, shape, strict=True))]
    key = tuple(
        xp.broadcast_to(indices, sizes) if d == axis
        # an axis of size 1 is broadcast: its only index is 0
        else (xp.arange(sizes[d]) * (shape[d] != 1)).reshape((-1,) + (1,) * (x.ndim - d - 1))
        for d in range(x.ndim)
    )  # fmt: skip
    return x[key], lambda dy: _add_at(k, shape, key, dy)


def _integers(k: Backend, name: str, indices: Any) -> Array:
    indices = snapshot(k.asarray(indices))
    if indices.dtype.kind not in "iu":
        raise TypeError(f"{name}: indices have dtype {indices.dtype}; an integer dtype is needed")
    return indices


def _add_at(k: Backend, shape: tuple[int, ...], key: Any, dy: Array) -> Array:
    dx = k.xp.zeros(shape, k.wide(dy).dtype)
    k.xp.add.at(dx, key, k.wide(dy))
    return dx
