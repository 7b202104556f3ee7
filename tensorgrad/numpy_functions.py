"""NumPy's functions called with tensors: `np.concatenate([x, y])` is `concat`. Imported where one is called."""

from collections.abc import Callable
from operator import attrgetter
from typing import Any

import numpy as np

from tensorgrad import creation, ops
from tensorgrad.tensor import Tensor
from tensorgrad.tree import tree_map


def _transpose(x: Any, axes: Any = None) -> Any:
    return ops.permute_dims(x, axes=tuple(range(x.ndim))[::-1] if axes is None else axes)


# How many arguments mean the same by position in both: NumPy has dtype and out behind them.
_BY_POSITION: dict[int, list[Callable[..., Any]]] = {
    1: [ops.matrix_transpose, ops.round],
    2: [
        ops.all, ops.any, ops.argmax, ops.argmin, ops.argsort, ops.broadcast_to, ops.count_nonzero, ops.expand_dims,
        ops.flip, ops.max, ops.mean, ops.min, ops.pad, ops.prod, ops.reshape, ops.squeeze, ops.stack, ops.std, ops.sum,
        ops.tile, ops.tril, ops.triu, ops.var,
        creation.empty_like, creation.full_like, creation.ones_like, creation.zeros_like,
    ],
    3: [ops.clip, ops.repeat, ops.roll, ops.take, ops.take_along_axis, ops.tensordot, ops.where],
}  # fmt: skip
_OURS: dict[Any, tuple[Callable[..., Any], int]] = {
    getattr(np, fn.__name__): (fn, n) for n, functions in _BY_POSITION.items() for fn in functions
} | {
    np.concatenate: (ops.concat, 2), np.cumsum: (ops.cumulative_sum, 2), np.transpose: (_transpose, 2),
    np.einsum: (ops.einsum, 99), np.shape: (attrgetter("shape"), 1), np.ndim: (attrgetter("ndim"), 1),
    np.size: (attrgetter("size"), 1),
}  # fmt: skip


def call(function: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """Return function(*args, **options) by ours of that meaning; by NumPy's, on arrays, where there is none.

    Raises TypeError for options that ours does not take, RuntimeError where an array would lose a gradient.
    """
    if function not in _OURS:
        return function(*tree_map(np.asarray, args, Tensor), **tree_map(np.asarray, options, Tensor))
    ours, n = _OURS[function]
    if len(args) > n:
        raise TypeError(f"numpy.{function.__name__}: {len(args)} arguments by position; give the options by name")
    return ours(*args, **options)
