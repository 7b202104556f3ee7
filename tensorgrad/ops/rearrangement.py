"""Elements repeated, reordered, surrounded or left out. Backward sends dy back to where each element came from."""

from typing import Any

from tensorgrad.autograd import op
from tensorgrad.backend import Array, Backend, as_operand
from tensorgrad.ops.broadcasting import INTEGER, normalize_axes
from tensorgrad.ops.indexing import getitem
from tensorgrad.ops.manipulation import permute_dims

__all__ = ["diagonal", "flip", "moveaxis", "pad", "roll", "tile", "tril", "triu"]

Result = tuple[Array, Any]


@op
def tile(k: Backend, x: Array, *, repetitions: int | tuple[int, ...]) -> Result:
    """x repeated repetitions[i] times along axis i. dx = the sum of dy over the copies."""
    times = (repetitions,) if isinstance(repetitions, INTEGER) else tuple(repetitions)
    before, ndim = x.shape, len(times) if len(times) > x.ndim else x.ndim
    times = (1,) * (ndim - len(times)) + times
    padded = (1,) * (ndim - x.ndim) + before
    copies = tuple(n for pair in zip(times, padded, strict=True) for n in pair)  # (r0, n0, r1, n1, ...)
    return k.xp.tile(x, times), lambda dy: k.sum(dy.reshape(copies), tuple(range(0, 2 * ndim, 2))).reshape(before)


def diagonal(x: Any, offset: int = 0) -> Any:
    """The diagonal of the last two axes: (..., m, n) -> (..., k); offset > 0 is above the main diagonal."""
    if x.ndim < 2:
        raise ValueError(f"diagonal: shape {x.shape} has fewer than two dimensions")
    first, left = max(-offset, 0), max(offset, 0)
    n = max(min(x.shape[-2] - first, x.shape[-1] - left), 0)
    return getitem(x, key=(..., list(range(first, first + n)), list(range(left, left + n))))


def moveaxis(x: Any, source: int | tuple[int, ...], destination: int | tuple[int, ...]) -> Any:
    """x with the axes `source` at the places `destination`; the others keep their order."""
    sources, places = (normalize_axes("moveaxis", axes, x.ndim) for axes in (source, destination))
    if len(sources) != len(places):
        raise ValueError(f"moveaxis: {len(sources)} axes cannot go to {len(places)} places")
    order = [i for i in range(x.ndim) if i not in sources]
    for place, axis in sorted(zip(places, sources, strict=True)):
        order.insert(place, axis)
    return permute_dims(x, axes=tuple(order))


@op
def flip(k: Backend, x: Array, *, axis: int | tuple[int, ...] | None = None) -> Result:
    """x with the order of its elements reversed along the axes; None is all axes. dx = dy reversed."""
    axes = normalize_axes("flip", axis, x.ndim)
    return k.xp.flip(x, axes), lambda dy: k.xp.flip(dy, axes)


@op
def roll(k: Backend, x: Array, *, shift: int | tuple[int, ...], axis: int | tuple[int, ...] | None = None) -> Result:
    """x with its elements shifted along the axes, from the end back to the start; axis None flattens x first.

    dx = dy shifted back.
    """
    back = tuple(-s for s in shift) if isinstance(shift, tuple | list) else -shift
    return k.xp.roll(x, shift, axis), lambda dy: k.xp.roll(dy, back, axis)


@op
def pad(k: Backend, x: Array, *, pad_width: Any, constant: float = 0) -> Result:
    """x with `constant` around it. pad_width: a pair (before, after) for each axis, or one pair or one int for all.

    dx = dy without its margins.
    """
    as_operand("pad", constant)
    widths = [(pad_width, pad_width)] if isinstance(pad_width, INTEGER) else pad_width
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
    """The lower triangle of the last two axes, 0 above the diagonal; diagonal > 0 is above the main diagonal.

    dx = the lower triangle of dy.
    """
    if x.ndim < 2:
        raise ValueError(f"tril: shape {x.shape} has fewer than two dimensions")
    return _triangle(k.xp.tril, x, diagonal), lambda dy: _triangle(k.xp.tril, dy, diagonal)


@op
def triu(k: Backend, x: Array, *, diagonal: int = 0) -> Result:
    """The upper triangle of the last two axes, 0 below the diagonal; diagonal > 0 is above the main diagonal.

    dx = the upper triangle of dy.
    """
    if x.ndim < 2:
        raise ValueError(f"triu: shape {x.shape} has fewer than two dimensions")
    return _triangle(k.xp.triu, x, diagonal), lambda dy: _triangle(k.xp.triu, dy, diagonal)


def _triangle(part: Any, x: Array, diagonal: int) -> Array:
    """tril or triu in x's dtype: CuPy's turn bfloat16 into float32."""
    return part(x, diagonal).astype(x.dtype, copy=False)
