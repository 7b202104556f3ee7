"""Ops without a gradient, against NumPy."""

from collections.abc import Callable
from typing import Any

import numpy as np

from tensorgrad import ops
from tensorgrad.backend import Array
from tensorgrad.gradcheck.cases.case import Case, booleans, integers, nonzero, randn

_special = np.array([0.0, -0.0, 1.0, -2.5, np.inf, -np.inf, np.nan])
_few = np.array([[1.0, 2.0, 1.0, 0.5], [0.5, 0.5, 2.0, 2.0], [-1.0, 1.0, 1.0, -1.0]])  # with ties
_halves = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 0.25, -0.75, 3.0, 0.0])
_bits = np.array([0, 1, 6, -1, 12])


def _comparison(fn: Callable[..., Any], reference: Callable[..., Any]) -> list[Case]:
    return [
        Case("0-d", fn, randn(), randn(), reference=reference),
        Case("one element", fn, randn(1), randn(1), reference=reference),
        Case("with ties", fn, _few, _few[::-1], reference=reference),
        Case("broadcast", fn, _few[:, :1], _few[1], reference=reference),
        Case("scalar right", fn, _few, 1.0, reference=reference),
        Case("scalar left", fn, 1.0, _few, reference=reference),
        Case("integers", fn, integers(0, 3, 3, 4), integers(0, 3, 4), reference=reference),
        Case("special values", fn, _special, _special[:, None], reference=reference),
        Case("empty", fn, randn(0, 3), randn(3), reference=reference),
        Case("transposed", fn, _few.T, _few.reshape(4, 3), reference=reference),
        Case("stride 0", fn, np.broadcast_to(randn(4), (3, 4)), randn(6, 4)[::2], reference=reference),
    ]


def _logic(fn: Callable[..., Any], reference: Callable[..., Any]) -> list[Case]:
    return [
        Case("0-d", fn, booleans(), booleans(), reference=reference),
        Case("one element", fn, booleans(1), booleans(1), reference=reference),
        Case("broadcast", fn, booleans(3, 1), booleans(4), reference=reference),
        Case("empty", fn, booleans(0, 3), booleans(3), reference=reference),
        Case("transposed", fn, booleans(4, 3).T, booleans(6, 8)[::2, ::2], reference=reference),
        Case("stride 0", fn, np.broadcast_to(booleans(4), (3, 4)), booleans(3, 4), reference=reference),
    ]


def _bitwise(fn: Callable[..., Any], reference: Callable[..., Any]) -> list[Case]:
    return [
        *_logic(fn, reference),
        Case("integers", fn, _bits, _bits[::-1], reference=reference),
        Case("integers, broadcast", fn, _bits[:, None], _bits, reference=reference),
        Case("scalar", fn, _bits, 6, reference=reference),
    ]


def _elementwise(fn: Callable[..., Any], reference: Callable[..., Any], *more: Array) -> list[Case]:
    return [
        Case("0-d", fn, randn(), reference=reference),
        Case("one element", fn, randn(1), reference=reference),
        Case("matrix", fn, 3 * randn(3, 4), reference=reference),
        Case("empty", fn, randn(0, 3), reference=reference),
        Case("transposed", fn, 3 * randn(4, 3).T, reference=reference),
        Case("sliced", fn, 3 * randn(6, 5)[::2, ::-1], reference=reference),
        Case("stride 0", fn, np.broadcast_to(randn(4), (3, 4)), reference=reference),
        *(Case(f"values {i}", fn, x, reference=reference) for i, x in enumerate(more)),
    ]


def _division(fn: Callable[..., Any], reference: Callable[..., Any]) -> list[Case]:
    a = np.array([5.25, -5.25, 7.5, -7.5, 0.75, 0.0])
    b = np.array([2.0, 2.0, -2.0, -2.0, 1.0, 3.0])
    return [
        Case("0-d", fn, np.array(5.25), np.array(-2.0), reference=reference),
        Case("one element", fn, a[:1], b[:1], reference=reference),
        Case("either sign", fn, a, b, reference=reference),
        Case("broadcast", fn, a[:, None], b, reference=reference),
        Case("scalar right", fn, a, 2.0, reference=reference),
        Case("scalar left", fn, 9.5, b, reference=reference),
        Case("integers", fn, np.array([7, -7, 7, -7]), np.array([2, 2, -2, -2]), reference=reference),
        Case("empty", fn, nonzero(0, 3), nonzero(3), reference=reference),
        Case("transposed", fn, a.reshape(2, 3).T, b.reshape(3, 2), reference=reference),
        Case("stride 0", fn, np.broadcast_to(a, (2, 6)), b[::-1], reference=reference),
    ]


def _search(fn: Callable[..., Any], reference: Callable[..., Any]) -> list[Case]:
    return [
        Case("one element", fn, randn(1), reference=reference),
        Case("vector", fn, randn(5), reference=reference),
        Case("flat", fn, randn(3, 4), reference=reference),
        Case("axis 0", fn, randn(3, 4), axis=0, reference=reference),
        Case("axis -1", fn, randn(2, 3, 4), axis=-1, reference=reference),
        Case("keepdims", fn, randn(3, 4), axis=1, keepdims=True, reference=reference),
        Case("with ties", fn, _few, axis=1, reference=reference),
        Case("integers", fn, integers(0, 9, 3, 4), axis=1, reference=reference),
        Case("empty", fn, randn(0, 3), axis=1, reference=reference),
        Case("transposed", fn, randn(4, 3).T, axis=0, reference=reference),
        Case("stride 0", fn, np.broadcast_to(randn(4), (3, 4)), axis=0, reference=reference),
    ]


def _truth(fn: Callable[..., Any], reference: Callable[..., Any]) -> list[Case]:
    x = np.where(np.eye(3, 4) == 1, 0.0, nonzero(3, 4))
    return [
        Case("0-d", fn, np.array(0.0), reference=reference),
        Case("one element", fn, np.array([2.0]), reference=reference),
        Case("all axes", fn, x, reference=reference),
        Case("axis 0", fn, x, axis=0, reference=reference),
        Case("two axes", fn, np.stack([x, x > 0]), axis=(0, -1), reference=reference),
        Case("keepdims", fn, x, axis=1, keepdims=True, reference=reference),
        Case("booleans", fn, booleans(3, 4), axis=1, reference=reference),
        Case("integers", fn, integers(0, 2, 3, 4), axis=0, reference=reference),
        Case("special values", fn, _special, reference=reference),
        Case("empty", fn, randn(0, 3), reference=reference),
        Case("empty axis", fn, randn(3, 0), axis=1, reference=reference),
        Case("transposed", fn, x.T, axis=0, reference=reference),
        Case("stride 0", fn, np.broadcast_to(x[0], (2, 4)), axis=0, reference=reference),
    ]


def _argsort(x: Array, axis: int = -1, descending: bool = False) -> Array:
    """NumPy's, which knows no descending order: equal elements stay in the order they came."""
    return np.argsort(-x if descending else x, axis=axis, kind="stable")


cases: dict[str, list[Case]] = {
    "equal": _comparison(ops.equal, np.equal),
    "not_equal": _comparison(ops.not_equal, np.not_equal),
    "less": _comparison(ops.less, np.less),
    "less_equal": _comparison(ops.less_equal, np.less_equal),
    "greater": _comparison(ops.greater, np.greater),
    "greater_equal": _comparison(ops.greater_equal, np.greater_equal),
    "logical_and": _logic(ops.logical_and, np.logical_and),
    "logical_or": _logic(ops.logical_or, np.logical_or),
    "logical_xor": _logic(ops.logical_xor, np.logical_xor),
    "logical_not": _elementwise(ops.logical_not, np.logical_not, booleans(3, 4), _special),
    "bitwise_and": _bitwise(ops.bitwise_and, np.bitwise_and),
    "bitwise_or": _bitwise(ops.bitwise_or, np.bitwise_or),
    "bitwise_xor": _bitwise(ops.bitwise_xor, np.bitwise_xor),
    "bitwise_invert": [
        Case("0-d", ops.bitwise_invert, booleans(), reference=np.bitwise_invert),
        Case("booleans", ops.bitwise_invert, booleans(4, 3).T, reference=np.bitwise_invert),
        Case("integers", ops.bitwise_invert, _bits, reference=np.bitwise_invert),
        Case("empty", ops.bitwise_invert, booleans(0, 3), reference=np.bitwise_invert),
        Case("stride 0", ops.bitwise_invert, np.broadcast_to(_bits, (2, 5)), reference=np.bitwise_invert),
    ],
    "isnan": _elementwise(ops.isnan, np.isnan, _special),
    "isinf": _elementwise(ops.isinf, np.isinf, _special),
    "isfinite": _elementwise(ops.isfinite, np.isfinite, _special),
    "floor": _elementwise(ops.floor, np.floor, _halves, _special),
    "ceil": _elementwise(ops.ceil, np.ceil, _halves, _special),
    "round": _elementwise(ops.round, np.round, _halves, _special),
    "floor_divide": _division(ops.floor_divide, np.floor_divide),
    "remainder": _division(ops.remainder, np.remainder),
    "argmax": _search(ops.argmax, np.argmax),
    "argmin": _search(ops.argmin, np.argmin),
    "argsort": [
        Case("one element", ops.argsort, randn(1), reference=_argsort),
        Case("vector", ops.argsort, randn(6), reference=_argsort),
        Case("axis 0", ops.argsort, randn(3, 4), axis=0, reference=_argsort),
        Case("with ties", ops.argsort, _few, axis=1, reference=_argsort),
        Case("descending", ops.argsort, randn(3, 4), descending=True, reference=_argsort),
        Case("descending with ties", ops.argsort, _few, axis=0, descending=True, reference=_argsort),
        Case("integers", ops.argsort, integers(0, 4, 3, 5), axis=1, reference=_argsort),
        Case("empty", ops.argsort, randn(0, 3), reference=_argsort),
        Case("transposed", ops.argsort, randn(4, 3).T, reference=_argsort),
        Case("stride 0", ops.argsort, np.broadcast_to(randn(4), (3, 4)), axis=0, reference=_argsort),
    ],
    "all": _truth(ops.all, np.all),
    "any": _truth(ops.any, np.any),
    "count_nonzero": _truth(ops.count_nonzero, np.count_nonzero),
}
