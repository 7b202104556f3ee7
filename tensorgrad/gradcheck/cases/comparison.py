"""Ops without a gradient, whose results have to be NumPy's."""

from collections.abc import Callable
from typing import Any

import numpy as np

from tensorgrad import ops
from tensorgrad.backend import Array
from tensorgrad.gradcheck.cases.case import Case, Draw, Example
from tensorgrad.gradcheck.cases.inputs import booleans, integers, nonzero, randn

_special = np.array([0.0, -0.0, 1.0, -2.5, np.inf, -np.inf, np.nan])
_with_ties = np.array([[1.0, 2.0, 1.0, 0.5], [0.5, 0.5, 2.0, 2.0], [-1.0, 1.0, 1.0, -1.0]])
_bits = np.array([0, 1, 6, -1, 12])


def _comparison() -> list[Example]:
    return [
        Example("0-d", randn(), randn()),
        Example("one element", randn(1), randn(1)),
        *Example("with ties", _with_ties, _with_ties[::-1]).layouts(),
        Example("broadcast", _with_ties[:, :1], _with_ties[1]),
        Example("scalar right", _with_ties, 1.0),
        Example("scalar left", 1.0, _with_ties),
        Example("integers", integers(0, 3, 3, 4), integers(0, 3, 4)),
        Example("special values", _special, _special[:, None]),
        Example("empty", randn(0, 3), randn(3)),
    ]


def _logic() -> list[Example]:
    return [
        Example("0-d", booleans(), booleans()),
        Example("one element", booleans(1), booleans(1)),
        *Example("broadcast", booleans(3, 1), booleans(4)).layouts(),
        Example("empty", booleans(0, 3), booleans(3)),
    ]


def _bitwise() -> list[Example]:
    return [
        *_logic(),
        Example("integers", _bits, _bits[::-1]),
        Example("integers, broadcast", _bits[:, None], _bits),
        Example("scalar", _bits, 6),
    ]


def _elementwise(*more: Array) -> list[Example]:
    return [
        Example("0-d", randn()),
        Example("one element", randn(1)),
        *Example("matrix", 3 * randn(3, 4)).layouts(),
        Example("empty", randn(0, 3)),
        *(Example(f"values {i}", x) for i, x in enumerate(more)),
    ]


def _search() -> list[Example]:
    return [
        Example("one element", randn(1)),
        Example("vector", randn(5)),
        Example("flat", randn(3, 4)),
        Example("axis 0", randn(3, 4), axis=0),
        *Example("axis -1", randn(2, 3, 4), axis=-1).layouts(),
        Example("keepdims", randn(3, 4), axis=1, keepdims=True),
        Example("with ties", _with_ties, axis=1),
        Example("integers", integers(0, 9, 3, 4), axis=1),
        Example("empty", randn(0, 3), axis=1),
    ]


def _truth() -> list[Example]:
    x = np.where(np.eye(3, 4) == 1, 0.0, nonzero(3, 4))
    return [
        Example("0-d", np.array(0.0)),
        Example("one element", np.array([2.0])),
        Example("all axes", x),
        *Example("axis 0", x, axis=0).layouts(),
        Example("two axes", np.stack([x, x > 0]), axis=(0, -1)),
        Example("keepdims", x, axis=1, keepdims=True),
        Example("booleans", booleans(3, 4), axis=1),
        Example("integers", integers(0, 2, 3, 4), axis=0),
        Example("special values", _special),
        Example("empty", randn(0, 3)),
        Example("empty axis", randn(3, 0), axis=1),
    ]


def _argsort(x: Array, axis: int = -1, descending: bool = False) -> Array:
    """NumPy's, which knows no descending order: equal elements stay in the order they came."""
    return np.argsort(-x if descending else x, axis=axis, kind="stable")


def _cases(draw: Draw, examples: Callable[[], list[Example]], *functions: Callable[..., Any]) -> list[Case]:
    return [Case(op, examples(), gradient=False, draw=draw) for op in functions]


_one, _two, _integers = Draw("unary", "few"), Draw("binary", "few", "few"), Draw("pairs_of_integers")

cases = [
    *_cases(_two, _comparison, ops.equal, ops.not_equal, ops.less, ops.less_equal, ops.greater, ops.greater_equal),
    *_cases(_two, _logic, ops.logical_and, ops.logical_or, ops.logical_xor),
    *_cases(_integers, _bitwise, ops.bitwise_and, ops.bitwise_or, ops.bitwise_xor),
    *_cases(_one, lambda: _elementwise(booleans(3, 4), _special), ops.logical_not),
    *_cases(_one, lambda: _elementwise(_special), ops.isnan, ops.isinf, ops.isfinite),
    *_cases(Draw("searching", "few"), _search, ops.argmax, ops.argmin),
    *_cases(Draw("reduction", "few", min_side=0), _truth, ops.all, ops.any, ops.count_nonzero),
    Case(ops.bitwise_invert, [
        Example("0-d", booleans()),
        *Example("booleans", booleans(4, 3).T).layouts(),
        Example("integers", _bits),
        Example("empty", booleans(0, 3)),
    ], gradient=False),
    Case(ops.nonzero, [
        Example("one element", randn(1)),
        *Example("matrix", np.where(np.eye(3, 4) == 1, 0.0, nonzero(3, 4))).layouts(),
        Example("booleans", booleans(5)),
        Example("empty", randn(0, 3)),
    ], call=lambda op, x: op(x)[-1], gradient=False),
    Case(ops.argsort, [
        Example("one element", randn(1)),
        Example("vector", randn(6)),
        Example("axis 0", randn(3, 4), axis=0),
        *Example("with ties", _with_ties, axis=1).layouts(),
        Example("descending", randn(3, 4), descending=True),
        Example("descending with ties", _with_ties, axis=0, descending=True),
        Example("integers", integers(0, 4, 3, 5), axis=1),
        Example("empty", randn(0, 3)),
    ], gradient=False, numpy=_argsort, draw=Draw("along_axis", "few", min_side=0, descending=[False, True])),
]
