"""Shape and order of elements. Backward applies the inverse to dy."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

from tensorgrad.autograd import Variable, op
from tensorgrad.backend import Array, Backend
from tensorgrad.calls import explained
from tensorgrad.ops.broadcasting import INTEGER, Shape, normalize_axes, normalize_axis, unbroadcast

__all__ = [
    "broadcast_to", "concat", "expand_dims", "matrix_transpose", "permute_dims", "repeat", "reshape", "split",
    "squeeze", "stack",
]

Result = tuple[Array, Any]


@op
def reshape(k: Backend, x: Array, *, shape: int | Shape) -> Result:
    """The same elements in another shape; one size may be -1. dx = dy in the shape of x."""
    before = x.shape
    return x.reshape(shape), lambda dy: dy.reshape(before)


@op
def permute_dims(k: Backend, x: Array, *, axes: tuple[int, ...]) -> Result:
    """Axis i of the result is axis axes[i] of x. dx = dy with its axes in the order of x."""
    order = normalize_axes("permute_dims", tuple(axes), x.ndim)
    if len(order) != x.ndim:
        raise ValueError(f"permute_dims: axes {axes} do not name all {x.ndim} dimensions")
    return x.transpose(order), lambda dy: dy.transpose(sorted(range(len(order)), key=order.__getitem__))


@op
def matrix_transpose(k: Backend, x: Array) -> Result:
    """x with its last two axes exchanged: (..., m, n) -> (..., n, m). dx = dy^T."""
    if x.ndim < 2:
        raise ValueError(f"matrix_transpose: shape {x.shape} has fewer than two dimensions")
    return x.swapaxes(-1, -2), lambda dy: dy.swapaxes(-1, -2)


@op
def expand_dims(k: Backend, x: Array, *, axis: int = 0) -> Result:
    """x with a new axis of size 1, which is axis `axis` of the result. dx = dy in the shape of x."""
    shape = x.shape
    axis = normalize_axis("expand_dims", axis, x.ndim + 1)
    return k.xp.expand_dims(x, axis), lambda dy: dy.reshape(shape)


@op
def squeeze(k: Backend, x: Array, *, axis: int | tuple[int, ...] | None = None) -> Result:
    """x without the named axes, which must have size 1; None is all axes of size 1. dx = dy in the shape of x."""
    shape = x.shape
    return x.squeeze(axis), lambda dy: dy.reshape(shape)


@op
def broadcast_to(k: Backend, x: Array, *, shape: Shape) -> Result:
    """x broadcast to that shape, as a view. dx = the sum of dy over the axes that were repeated."""
    before = x.shape
    return k.xp.broadcast_to(x, shape), lambda dy: unbroadcast(k, dy, before)


@op
def _concat(k: Backend, *arrays: Array, axis: int) -> Result:
    axis = normalize_axis("concat", axis, arrays[0].ndim)
    *ends, _ = itertools.accumulate(a.shape[axis] for a in arrays)
    return k.xp.concatenate(arrays, axis=axis), lambda dy: tuple(k.xp.split(dy, ends, axis))


@explained
def concat(arrays: Sequence[Any], axis: int | None = 0) -> Any:
    """Arrays joined along an existing axis; None flattens them first. At least one must be a Tensor.

    The gradient of each array is its part of dy.
    """
    if not arrays:
        raise ValueError("concat: no tensors to join")
    if axis is None:
        flat = [reshape(a, shape=(-1,)) if isinstance(a, Variable) else a.reshape(-1) for a in arrays]
        return _concat(*flat, axis=0)
    return _concat(*arrays, axis=axis)


@op
def _stack(k: Backend, *arrays: Array, axis: int) -> Result:
    n = len(arrays)
    axis = normalize_axis("stack", axis, arrays[0].ndim + 1)
    return k.xp.stack(arrays, axis=axis), lambda dy: tuple(dy[(slice(None),) * axis + (i,)] for i in range(n))


@explained
def stack(arrays: Sequence[Any], axis: int = 0) -> Any:
    """Arrays of one shape joined along a new axis. At least one must be a Tensor.

    The gradient of each array is its part of dy.
    """
    if not arrays:
        raise ValueError("stack: no tensors to join")
    return _stack(*arrays, axis=axis)


@op
def split(k: Backend, x: Array, *, sections: int | Sequence[int], axis: int = 0) -> tuple[list[Array], Any]:
    """A list of parts of x along an axis. sections: the number of equal parts, or a sequence of their sizes.

    dx = the gradients of the parts, joined; 0 for a part that has none of dy.
    """
    axis, shape, dtype = normalize_axis("split", axis, x.ndim), x.shape, x.dtype
    total = shape[axis]
    if isinstance(sections, INTEGER):
        if sections < 1 or total % sections:
            raise ValueError(f"split: axis {axis} of size {total} has no {sections} equal parts")
        sizes = [total // sections] * sections
    else:
        sizes = list(sections)
        if math.fsum(sizes) != total or any(n < 0 for n in sizes):
            raise ValueError(f"split: sizes {sizes} do not add up to {total}, the size of axis {axis}")
    before, ends = (slice(None),) * axis, itertools.accumulate(sizes)
    keys = [(*before, slice(end - n, end)) for n, end in zip(sizes, ends, strict=True)]

    def backward(dys: list[Array | None]) -> Array:
        joined = _joined(k, dys, axis, shape)
        if joined is not None:
            return joined
        dx = k.xp.empty(shape, dtype)
        for key, dy in zip(keys, dys, strict=True):
            dx[key] = 0 if dy is None else dy
        return dx

    return [x[key] for key in keys], backward


def _joined(k: Backend, parts: list[Array | None], axis: int, shape: Shape) -> Array | None:
    """Return the array of that shape whose parts along the axis are these, in this memory; None if there is none.

    The gradients of q, k and v are parts of one array where the kernel wrote them so: nothing has to be copied.
    """
    first = parts[0]
    if first is None or not isinstance(first.base, type(first)):  # the base may be a buffer that is no array
        return None
    address = _address(first)
    for part in parts:
        if part is None or part.base is not first.base or part.dtype != first.dtype or part.strides != first.strides:
            return None
        if _address(part) != address:
            return None
        address += part.shape[axis] * part.strides[axis]
    whole = k.xp.lib.stride_tricks.as_strided(first, shape, first.strides)
    return whole[...]  # has a base, in CuPy, too: the tape does not write into it


def _address(x: Array) -> int:
    """The address of the first element."""
    interface = x.__array_interface__ if hasattr(x, "__array_interface__") else x.__cuda_array_interface__
    return int(interface["data"][0])


@op
def repeat(k: Backend, x: Array, *, repeats: int | Any, axis: int | None = None) -> Result:
    """Every element along an axis `repeats` times: an int, or one int for each element; None flattens x first.

    dx = the sum of dy over the copies of each element.
    """
    xp, before, dtype = k.xp, x.shape, x.dtype
    flat = x.reshape(-1) if axis is None else x
    at = 0 if axis is None else normalize_axis("repeat", axis, x.ndim)
    counts = repeats.data if isinstance(repeats, Variable) else repeats
    counts = counts.tolist() if hasattr(counts, "tolist") else counts  # CuPy takes no NumPy array
    source = xp.repeat(xp.arange(flat.shape[at]), counts)
    shape = flat.shape

    def backward(dy: Array) -> Array:
        dx = xp.zeros(shape, k.wide(dy).dtype)
        xp.add.at(dx, (slice(None),) * at + (source,), k.wide(dy))
        return dx.astype(dtype, copy=False).reshape(before)

    return xp.take(flat, source, axis=at), backward
