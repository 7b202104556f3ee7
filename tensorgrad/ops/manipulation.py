"""Changing shape and order: the gradient is the same change undone."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

from tensorgrad.autograd import Variable, op
from tensorgrad.backend import Array, Backend
from tensorgrad.ops.broadcasting import Shape, normalize_axes, normalize_axis, unbroadcast

__all__ = [
    "broadcast_to", "concat", "expand_dims", "flip", "matrix_transpose", "pad", "permute_dims", "repeat", "reshape",
    "roll", "split", "squeeze", "stack", "tile", "tril", "triu",
]

Result = tuple[Array, Any]


@op
def reshape(k: Backend, x: Array, *, shape: int | Shape) -> Result:
    """The same elements in another shape; one size may be -1."""
    before = x.shape
    return x.reshape(shape), lambda dy: dy.reshape(before)


@op
def permute_dims(k: Backend, x: Array, *, axes: tuple[int, ...]) -> Result:
    """Axis i of the result is axis axes[i] of x."""
    order = normalize_axes("permute_dims", tuple(axes), x.ndim)
    if len(order) != x.ndim:
        raise ValueError(f"permute_dims: axes {axes} do not name all {x.ndim} dimensions")
    return x.transpose(order), lambda dy: dy.transpose(sorted(range(len(order)), key=order.__getitem__))


@op
def matrix_transpose(k: Backend, x: Array) -> Result:
    """The last two axes exchanged: (..., m, n) -> (..., n, m)."""
    if x.ndim < 2:
        raise ValueError(f"matrix_transpose: shape {x.shape} has fewer than two dimensions")
    return x.swapaxes(-1, -2), lambda dy: dy.swapaxes(-1, -2)


@op
def expand_dims(k: Backend, x: Array, *, axis: int = 0) -> Result:
    """A new axis of size 1 at `axis` of the result."""
    shape = x.shape
    axis = normalize_axis("expand_dims", axis, x.ndim + 1)
    return k.xp.expand_dims(x, axis), lambda dy: dy.reshape(shape)


@op
def squeeze(k: Backend, x: Array, *, axis: int | tuple[int, ...] | None = None) -> Result:
    """Without the axes of size 1 that are named; None is all of them. ValueError where another size is found."""
    shape = x.shape
    return x.squeeze(axis), lambda dy: dy.reshape(shape)


@op
def broadcast_to(k: Backend, x: Array, *, shape: Shape) -> Result:
    """x stretched to that shape, as a view."""
    before = x.shape
    return k.xp.broadcast_to(x, shape), lambda dy: unbroadcast(k, dy, before)


@op
def _concat(k: Backend, *arrays: Array, axis: int) -> Result:
    axis = normalize_axis("concat", axis, arrays[0].ndim)
    sizes = [a.shape[axis] for a in arrays]

    def backward(dy: Array) -> tuple[Array, ...]:
        parts, start = [], 0
        for size in sizes:
            parts.append(dy[(slice(None),) * axis + (slice(start, start + size),)])
            start += size
        return tuple(parts)

    return k.xp.concatenate(arrays, axis=axis), backward


def concat(arrays: Sequence[Any], axis: int | None = 0) -> Any:
    """Tensors joined along an axis that they have; None flattens them first. At least one must be a Tensor."""
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


def stack(arrays: Sequence[Any], axis: int = 0) -> Any:
    """Tensors of one shape joined along a new axis. At least one must be a Tensor."""
    if not arrays:
        raise ValueError("stack: no tensors to join")
    return _stack(*arrays, axis=axis)


@op
def split(k: Backend, x: Array, *, sections: int | Sequence[int], axis: int = 0) -> tuple[list[Array], Any]:
    """x cut along an axis into a list: an int is the number of equal parts, a sequence the size of each part."""
    axis, shape, dtype = normalize_axis("split", axis, x.ndim), x.shape, x.dtype
    total = shape[axis]
    if isinstance(sections, int):
        if sections < 1 or total % sections:
            raise ValueError(f"split: axis {axis} of size {total} has no {sections} equal parts")
        sizes = [total // sections] * sections
    else:
        sizes = list(sections)
        if math.fsum(sizes) != total or any(n < 0 for n in sizes):
            raise ValueError(f"split: sizes {sizes} do not add up to {total}, the size of axis {axis}")
    before, ends = (slice(None),) * axis, itertools.accumulate(sizes)
    places = [(*before, slice(end - n, end)) for n, end in zip(sizes, ends, strict=True)]

    def backward(parts: list[Array | None]) -> Array:
        whole = _whole(parts, places, shape)
        if whole is not None:
            return whole
        dx = k.xp.empty(shape, dtype)
        for place, part in zip(places, parts, strict=True):
            dx[place] = 0 if part is None else part
        return dx

    return [x[place] for place in places], backward


def _whole(parts: list[Array | None], places: list[Any], shape: Shape) -> Array | None:
    """The array that the parts lie in, if it is theirs alone and each is where it would be copied to."""
    first = parts[0]
    if first is None or not isinstance(first.base, type(first)):  # no base, or memory that is no array
        return None
    base = first.base
    if base.size != math.prod(shape) or not base.flags.c_contiguous:
        return None
    whole = base.reshape(shape)
    for place, part in zip(places, parts, strict=True):
        if part is None or part.base is not base or part.dtype != base.dtype:
            return None
        view = whole[place]
        if view.strides != part.strides or _start(view) != _start(part):
            return None
    return whole


def _start(x: Array) -> int:
    """The address of the first element."""
    interface = x.__array_interface__ if hasattr(x, "__array_interface__") else x.__cuda_array_interface__
    return int(interface["data"][0])


@op
def tile(k: Backend, x: Array, *, repetitions: int | tuple[int, ...]) -> Result:
    """x laid side by side, repetitions[i] times along axis i. dx = the sum of dy over the copies."""
    times = (repetitions,) if isinstance(repetitions, int) else tuple(repetitions)
    before, ndim = x.shape, len(times) if len(times) > x.ndim else x.ndim
    times = (1,) * (ndim - len(times)) + times
    padded = (1,) * (ndim - x.ndim) + before
    apart = tuple(n for pair in zip(times, padded, strict=True) for n in pair)  # (r0, n0, r1, n1, ...)
    return k.xp.tile(x, times), lambda dy: k.sum(dy.reshape(apart), tuple(range(0, 2 * ndim, 2))).reshape(before)


@op
def repeat(k: Backend, x: Array, *, repeats: int | Any, axis: int | None = None) -> Result:
    """Every element along an axis `repeats` times (an int, or one int an element); None flattens x first."""
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


@op
def flip(k: Backend, x: Array, *, axis: int | tuple[int, ...] | None = None) -> Result:
    """The order of the elements reversed along the axes; None is all."""
    axes = normalize_axes("flip", axis, x.ndim)
    return k.xp.flip(x, axes), lambda dy: k.xp.flip(dy, axes)


@op
def roll(k: Backend, x: Array, *, shift: int | tuple[int, ...], axis: int | tuple[int, ...] | None = None) -> Result:
    """Elements moved on by `shift` along the axes, what falls off comes in at the front; None rolls x as if flat."""
    back = tuple(-s for s in shift) if isinstance(shift, tuple | list) else -shift
    return k.xp.roll(x, shift, axis), lambda dy: k.xp.roll(dy, back, axis)


@op
def pad(k: Backend, x: Array, *, pad_width: Any, constant: float = 0) -> Result:
    """x with `constant` around it. pad_width: one (before, after) an axis, one pair for all, or one int for all."""
    widths = [(pad_width, pad_width)] if isinstance(pad_width, int) else pad_width
    if widths and isinstance(widths[0], int):
        widths = [tuple(widths)]
    widths = list(widths) * x.ndim if len(widths) == 1 else list(widths)
    if len(widths) != x.ndim or any(len(w) != 2 or w[0] < 0 or w[1] < 0 for w in widths):
        raise ValueError(f"pad: pad_width {pad_width} is not one (before, after) for each axis of {x.shape}")
    inner = tuple(slice(before, before + n) for (before, _), n in zip(widths, x.shape, strict=True))
    if x.ndim == 0:
        return x, lambda dy: dy
    return k.xp.pad(x, widths, constant_values=constant), lambda dy: dy[inner]


@op
def tril(k: Backend, x: Array, *, diagonal: int = 0) -> Result:
    """The lower triangle of the last two axes, 0 above the diagonal; diagonal > 0 lies above the main one."""
    if x.ndim < 2:
        raise ValueError(f"tril: shape {x.shape} has fewer than two dimensions")
    return _triangle(k.xp.tril, x, diagonal), lambda dy: _triangle(k.xp.tril, dy, diagonal)


@op
def triu(k: Backend, x: Array, *, diagonal: int = 0) -> Result:
    """The upper triangle of the last two axes, 0 below the diagonal; diagonal > 0 lies above the main one."""
    if x.ndim < 2:
        raise ValueError(f"triu: shape {x.shape} has fewer than two dimensions")
    return _triangle(k.xp.triu, x, diagonal), lambda dy: _triangle(k.xp.triu, dy, diagonal)


def _triangle(part: Any, x: Array, diagonal: int) -> Array:
    """tril or triu in x's dtype: CuPy's make float32 of bfloat16."""
    return part(x, diagonal).astype(x.dtype, copy=False)
