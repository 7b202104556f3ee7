"""Reductions, and softmax, which is one in disguise."""

from collections.abc import Callable
from typing import Any

import numpy as np

from tensorgrad import ops
from tensorgrad.gradcheck.cases.case import Case, Draw, distinct, nonzero, randn


def _reduction(fn: Callable[..., Any], draw: Draw = randn, **options: Any) -> list[Case]:
    """Cases of a reduction: over which axes, of arrays lying how."""
    return [
        Case("0-d", fn, draw(), **options),
        Case("one element", fn, draw(1), **options),
        Case("all axes", fn, draw(2, 3, 4), **options),
        Case("axis 0", fn, draw(3, 4), axis=0, **options),
        Case("axis -1", fn, draw(2, 3, 4), axis=-1, **options),
        Case("axis -2, keepdims", fn, draw(2, 3, 4), axis=-2, keepdims=True, **options),
        Case("two axes", fn, draw(2, 3, 4), axis=(0, 2), **options),
        Case("two axes, negative", fn, draw(2, 3, 4), axis=(-1, 0), keepdims=True, **options),
        Case("no axis", fn, draw(3, 4), axis=(), **options),
        Case("all axes, keepdims", fn, draw(3, 4), keepdims=True, **options),
        Case("axis of size 1", fn, draw(3, 1, 2), axis=1, **options),
        Case("empty result", fn, draw(0, 3), axis=1, **options),
        Case("transposed", fn, draw(4, 3).T, axis=0, **options),
        Case("sliced", fn, draw(6, 5)[::2, 1:4], axis=1, **options),
        Case("reversed", fn, draw(5)[::-1], **options),
        Case("used twice", lambda x, **given: ops.multiply(fn(x, **given), x), draw(3, 4), **options),
    ]


def _spread(fn: Callable[..., Any]) -> list[Case]:
    """Cases of a measure of spread: a reduction of two elements or more."""
    one = {"0-d", "one element", "no axis", "axis of size 1"}
    return [
        *(case for case in _reduction(fn) if case.name not in one),
        Case("stride 0", fn, np.broadcast_to(randn(4), (3, 4)), axis=1),
        Case("correction", fn, randn(3, 4), axis=1, correction=1),
        Case("fractional correction", fn, randn(3, 4), correction=0.5, keepdims=True),
        Case("far from 0", fn, randn(3, 4) + 10, axis=1),
    ]


def _along_axis(fn: Callable[..., Any]) -> list[Case]:
    """Cases of a function of every row, as long as the row."""
    return [
        Case("one element", fn, randn(1)),
        Case("vector", fn, randn(5)),
        Case("rows of one", fn, randn(3, 1)),
        Case("3-d", fn, randn(2, 3, 4)),
        Case("axis 0", fn, randn(3, 4), axis=0),
        Case("axis 1", fn, randn(2, 3, 4), axis=1),
        Case("axis -2", fn, randn(2, 3, 4), axis=-2),
        Case("no rows", fn, randn(0, 3)),
        Case("transposed", fn, randn(4, 3).T),
        Case("sliced", fn, randn(6, 5)[::2, 1:4]),
        Case("stride 0", fn, np.broadcast_to(randn(3, 1), (3, 4))),
        Case("large", fn, randn(3, 4) + np.array([[100.0], [-100.0], [0.0]])),
        Case("used twice", lambda x: ops.multiply(fn(x), x), randn(3, 4)),
    ]


_minus_infinity = np.where(np.eye(3, 4) == 1, -np.inf, randn(3, 4))

cases: dict[str, list[Case]] = {
    "sum": [*_reduction(ops.sum), Case("empty", ops.sum, randn(0, 3)), Case("empty axis", ops.sum, randn(3, 0), axis=1),
            Case("stride 0", ops.sum, np.broadcast_to(randn(4), (3, 4)), axis=1)],
    "mean": [*_reduction(ops.mean), Case("stride 0", ops.mean, np.broadcast_to(randn(4), (3, 4)), axis=1)],
    "max": [*_reduction(ops.max, distinct), Case("minus infinity", ops.max, _minus_infinity, axis=1)],
    "min": [*_reduction(ops.min, distinct), Case("plus infinity", ops.min, -_minus_infinity, axis=1)],
    "prod": [
        *_reduction(ops.prod, nonzero),
        Case("empty", ops.prod, randn(0, 3)),
        Case("empty axis", ops.prod, randn(3, 0), axis=1),
        Case("a zero", ops.prod, np.array([[1.5, 0, -2], [1, 2, 3]]), axis=1),
        Case("two zeros", ops.prod, np.array([1.5, 0, -2, 0])),
        Case("all zeros", ops.prod, np.zeros((2, 3)), axis=0),
        Case("stride 0", ops.prod, np.broadcast_to(nonzero(4), (3, 4)), axis=0),
    ],
    "var": _spread(ops.var),
    "std": _spread(ops.std),
    "logsumexp": [
        *_reduction(ops.logsumexp),
        Case("large", ops.logsumexp, randn(3, 4) + np.array([[100.0], [-100.0], [0.0]]), axis=1),
        Case("minus infinity", ops.logsumexp, _minus_infinity, axis=1),
        Case("stride 0", ops.logsumexp, np.broadcast_to(randn(4), (3, 4)), axis=0),
    ],
    "cumulative_sum": [
        Case("one element", ops.cumulative_sum, randn(1)),
        Case("vector", ops.cumulative_sum, randn(5)),
        Case("axis 0", ops.cumulative_sum, randn(3, 4), axis=0),
        Case("axis -1", ops.cumulative_sum, randn(2, 3, 4), axis=-1),
        Case("empty", ops.cumulative_sum, randn(0, 3), axis=0),
        Case("transposed", ops.cumulative_sum, randn(4, 3).T, axis=1),
        Case("stride 0", ops.cumulative_sum, np.broadcast_to(randn(4), (3, 4)), axis=0),
        Case("used twice", lambda x: ops.multiply(ops.cumulative_sum(x), x), randn(5)),
    ],
    "softmax": [*_along_axis(ops.softmax), Case("minus infinity", ops.softmax, _minus_infinity)],
    "log_softmax": _along_axis(ops.log_softmax),
}  # fmt: skip
