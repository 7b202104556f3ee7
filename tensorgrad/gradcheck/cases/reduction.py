"""Reductions, and softmax, which reduces every row and divides by what it finds."""

import numpy as np

from tensorgrad import ops
from tensorgrad.gradcheck.cases.case import Case, Draw, Example
from tensorgrad.gradcheck.cases.inputs import Numbers, distinct, nonzero, randn


def _reduction(numbers: Numbers = randn, *, saves: str) -> list[Example]:
    """Examples of a reduction: over various axes, of arrays in various layouts."""
    return [
        Example("0-d", numbers()),
        Example("one element", numbers(1)),
        Example("all axes", numbers(2, 3, 4)),
        Example("axis 0", numbers(3, 4), axis=0),
        *Example("axis -1", numbers(2, 3, 4), axis=-1, saves=saves).layouts(),
        Example("axis -2, keepdims", numbers(2, 3, 4), axis=-2, keepdims=True),
        Example("two axes", numbers(2, 3, 4), axis=(0, 2)),
        Example("two axes, negative", numbers(2, 3, 4), axis=(-1, 0), keepdims=True),
        Example("no axis", numbers(3, 4), axis=()),
        Example("all axes, keepdims", numbers(3, 4), keepdims=True),
        Example("axis of size 1", numbers(3, 1, 2), axis=1),
        Example("empty result", numbers(0, 3), axis=1),
        Example("used twice", numbers(3, 4), call=lambda op, x: ops.multiply(op(x), x)),
    ]


def _spread(*, saves: str) -> list[Example]:
    """Examples of a measure of spread: a reduction of at least two elements."""
    one = {"0-d", "one element", "no axis", "axis of size 1"}
    return [
        *(example for example in _reduction(saves=saves) if example.name not in one),
        Example("correction", randn(3, 4), axis=1, correction=1),
        Example("fractional correction", randn(3, 4), correction=0.5, keepdims=True),
        Example("far from 0", randn(3, 4) + 10, axis=1),
    ]


def _along_axis(saves_in_half: str | None = None) -> list[Example]:
    """Examples of a function that maps every row to one of the same length."""
    return [
        Example("one element", randn(1)),
        Example("vector", randn(5)),
        Example("rows of one", randn(3, 1)),
        *Example("3-d", randn(2, 3, 4), saves="y", saves_in_half=saves_in_half).layouts(),
        Example("axis 0", randn(3, 4), axis=0),
        Example("axis 1", randn(2, 3, 4), axis=1),
        Example("axis -2", randn(2, 3, 4), axis=-2),
        Example("no rows", randn(0, 3)),
        Example("large", randn(3, 4) + np.array([[100.0], [-100.0], [0.0]])),
        Example("used twice", randn(3, 4), call=lambda op, x: ops.multiply(op(x), x)),
    ]


_minus_infinity = np.where(np.eye(3, 4) == 1, -np.inf, randn(3, 4))

cases = [
    Case(ops.sum, [
        *_reduction(saves=""),
        Example("empty", randn(0, 3)),
        Example("empty axis", randn(3, 0), axis=1),
    ], draw=Draw("reduction", min_side=0)),
    Case(ops.mean, [*_reduction(saves="")], draw=Draw("reduction")),
    Case(ops.max, [*_reduction(distinct, saves="a (2,3,1)"), Example("minus infinity", _minus_infinity, axis=1)],
         draw=Draw("reduction", "with_ties")),
    Case(ops.min, [*_reduction(distinct, saves="a (2,3,1)"), Example("plus infinity", -_minus_infinity, axis=1)],
         draw=Draw("reduction", "with_ties")),
    Case(ops.prod, [
        *_reduction(nonzero, saves="a"),
        Example("empty", randn(0, 3)),
        Example("empty axis", randn(3, 0), axis=1),
        Example("a zero", np.array([[1.5, 0, -2], [1, 2, 3]]), axis=1),
        Example("two zeros", np.array([1.5, 0, -2, 0])),
        Example("all zeros", np.zeros((2, 3)), axis=0),
    ], draw=Draw("reduction", "with_ties", min_side=0)),
    Case(ops.var, _spread(saves="a (2,3,1)"), draw=Draw("deviation")),
    Case(ops.std, _spread(saves="a (2,3,1) (2,3,1)"), draw=Draw("deviation")),
    Case(ops.logsumexp, [
        *_reduction(saves="a (2,3,1) (2,3,1)"),
        Example("large", randn(3, 4) + np.array([[100.0], [-100.0], [0.0]]), axis=1),
        Example("minus infinity", _minus_infinity, axis=1),
    ], draw=Draw("reduction")),
    Case(ops.cumulative_sum, [
        Example("one element", randn(1)),
        Example("vector", randn(5)),
        Example("axis 0", randn(3, 4), axis=0),
        *Example("axis -1", randn(2, 3, 4), axis=-1, saves="").layouts(),
        Example("empty", randn(0, 3), axis=0),
        Example("used twice", randn(5), call=lambda op, x: ops.multiply(op(x), x)),
    ], numpy=np.cumsum, torch="cumsum", draw=Draw("along_axis", min_side=0)),
    Case(ops.softmax, [*_along_axis(), Example("minus infinity", _minus_infinity)], draw=Draw("along_axis")),
    Case(ops.log_softmax, _along_axis(saves_in_half="float32(2,3,4)"), draw=Draw("along_axis")),
]
