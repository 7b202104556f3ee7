"""Shapes and axes of operands. An operand that was broadcast in forward has its gradient summed in backward."""

from typing import Any

import numpy as np

from tensorgrad.backend import Array, Backend

Shape = tuple[int, ...]
INTEGER = (int, np.integer)


def shape_of(x: Any) -> Shape:
    """The shape of an operand; () for a Python number."""
    shape: Shape = getattr(x, "shape", ())
    return shape


def unbroadcast(k: Backend, dy: Array, shape: Shape) -> Array:
    """Sum `dy` over the axes along which an operand of that shape was broadcast."""
    if dy.shape == shape:
        return dy
    n_new = dy.ndim - len(shape)
    repeated = tuple(i + n_new for i, n in enumerate(shape) if n == 1 and dy.shape[i + n_new] != 1)
    return k.sum(dy, axis=(*range(n_new), *repeated), keepdims=True).reshape(shape)


def broadcasts_to(shape: Shape, target: Shape) -> bool:
    """Whether arrays of that shape broadcast to `target`."""
    last = target[len(target) - len(shape) :]
    return len(shape) <= len(target) and all(n in (1, m) for n, m in zip(shape, last, strict=True))


def normalize_axis(name: str, axis: int, ndim: int) -> int:
    """Return the axis counted from 0. Raises ValueError if there is no such axis."""
    if not -ndim <= axis < ndim:
        raise ValueError(f"{name}: axis {axis} is out of range for {ndim} dimensions")
    return axis % ndim


def normalize_axes(name: str, axis: int | tuple[int, ...] | None, ndim: int) -> tuple[int, ...]:
    """Return the axes counted from 0; None is all of them. Raises ValueError for one out of range or named twice."""
    if axis is None:
        return tuple(range(ndim))
    axes = tuple([normalize_axis(name, a, ndim) for a in (axis if isinstance(axis, tuple | list) else (axis,))])
    if len(set(axes)) != len(axes):
        raise ValueError(f"{name}: axis {axis} names an axis twice")
    return axes
