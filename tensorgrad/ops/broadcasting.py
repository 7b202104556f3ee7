"""Broadcasting backwards: what was stretched in forward is summed in backward."""

from typing import Any

from tensorgrad.backend import Array, Backend

Shape = tuple[int, ...]


def shape_of(x: Any) -> Shape:
    """The shape of an operand; a Python scalar has none, ()."""
    shape: Shape = getattr(x, "shape", ())
    return shape


def unbroadcast(k: Backend, dy: Array, shape: Shape) -> Array:
    """Sum `dy` over the axes along which an operand of that shape was broadcast."""
    if dy.shape == shape:
        return dy
    new = dy.ndim - len(shape)
    stretched = tuple(i + new for i, n in enumerate(shape) if n == 1 and dy.shape[i + new] != 1)
    return k.sum(dy, axis=(*range(new), *stretched), keepdims=True).reshape(shape)


def fits(shape: Shape, target: Shape) -> bool:
    """Whether arrays of that shape broadcast to `target`."""
    behind = target[len(target) - len(shape) :]
    return len(shape) <= len(target) and all(n in (1, m) for n, m in zip(shape, behind, strict=True))


def normalize_axis(name: str, axis: int, ndim: int) -> int:
    """An axis counted from 0. Raises ValueError where there is no such axis."""
    if not -ndim <= axis < ndim:
        raise ValueError(f"{name}: axis {axis} is out of range for {ndim} dimensions")
    return axis % ndim


def normalize_axes(name: str, axis: int | tuple[int, ...] | None, ndim: int) -> tuple[int, ...]:
    """Axes counted from 0, all of them for None. Raises ValueError for an axis that is not there or is named twice."""
    if axis is None:
        return tuple(range(ndim))
    axes = tuple([normalize_axis(name, a, ndim) for a in (axis if isinstance(axis, tuple | list) else (axis,))])
    if len(set(axes)) != len(axes):
        raise ValueError(f"{name}: axis {axis} names an axis twice")
    return axes
