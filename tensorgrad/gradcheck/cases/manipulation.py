"""Changing shape and order."""

from typing import Any

import numpy as np

from tensorgrad import ops
from tensorgrad.gradcheck.cases.case import Case, Draw, Example, Frozen
from tensorgrad.gradcheck.cases.inputs import integers, nonzero, randn


def _of_a_list(joins: Any, *arrays: Any, **options: Any) -> Any:
    return joins(arrays, **options)


def _triangle() -> list[Example]:
    return [
        Example("one element", randn(1, 1)),
        *Example("square", randn(4, 4), saves="").layouts(),
        Example("wide", randn(3, 5)),
        Example("tall stack", randn(2, 4, 3)),
        Example("above", randn(4, 4), diagonal=1),
        Example("below", randn(4, 3), diagonal=-2),
        Example("everything off", randn(3, 3), diagonal=-5),
        Example("empty", randn(0, 3)),
        Example("used twice", nonzero(3, 3), call=lambda op, x: ops.multiply(op(x), x)),
    ]


cases = [
    Case(ops.reshape, [
        Example("0-d to one", randn(), shape=(1,)),
        Example("one to 0-d", randn(1, 1), shape=()),
        Example("flat", randn(2, 3, 4), shape=(-1,)),
        Example("an int", randn(2, 3), shape=6),
        *Example("one unknown", randn(4, 6), shape=(3, -1, 2), saves="").layouts(),
        Example("empty", randn(0, 3), shape=(3, 2, 0)),
        Example("used twice", randn(3, 4), call=lambda op, x: ops.matmul(x, op(x, shape=(4, 3)))),
    ], numpy=lambda x, shape: x.reshape(shape), draw=Draw("reshaping")),
    Case(ops.permute_dims, [
        Example("0-d", randn(), axes=()),
        Example("one element", randn(1, 1), axes=(1, 0)),
        Example("same order", randn(3, 4), axes=(0, 1)),
        *Example("cycle", randn(2, 3, 4), axes=(1, 2, 0), saves="").layouts(),
        Example("negative", randn(2, 3, 4, 5), axes=(-1, 0, -2, 1)),
        Example("empty", randn(2, 0, 3), axes=(2, 0, 1)),
        Example("used twice", randn(3, 4), call=lambda op, x: ops.matmul(x, op(x, axes=(1, 0)))),
    ], torch=lambda t, x, axes: t.permute(x, axes), draw=Draw("permuting")),
    Case(ops.matrix_transpose, [
        Example("one element", randn(1, 1)),
        Example("matrix", randn(3, 4)),
        *Example("stack", randn(2, 3, 4), saves="").layouts(),
        Example("empty", randn(2, 0, 3)),
        Example("used twice", randn(2, 3, 4), call=lambda op, x: ops.matmul(x, op(x))),
    ], torch=lambda t, x: x.mT, draw=Draw("unary", min_dims=2)),
    Case(ops.expand_dims, [
        Example("0-d", randn(), axis=0),
        Example("front", randn(3, 4), axis=0),
        *Example("middle", randn(3, 4), axis=1, saves="").layouts(),
        Example("end", randn(3, 4), axis=-1),
        Example("empty", randn(0, 3), axis=1),
        Example("used twice", randn(4), call=lambda op, x: ops.multiply(x, op(x, axis=1))),
    ], torch="unsqueeze", draw=Draw("expanding")),
    Case(ops.squeeze, [
        Example("one element", randn(1, 1, 1)),
        *Example("all of size 1", randn(1, 3, 1, 4), saves="").layouts(),
        Example("one axis", randn(1, 3, 1), axis=-1),
        Example("two axes", randn(1, 3, 1, 4), axis=(0, 2)),
        Example("nothing to do", randn(3, 4)),
        Example("empty", randn(0, 1, 3), axis=1),
        Example("used twice", randn(4, 1), call=lambda op, x: ops.multiply(x, op(x))),
    ], torch=lambda t, x, axis: x.squeeze() if axis is None else x.squeeze(axis), draw=Draw("squeezing")),
    Case(ops.broadcast_to, [
        Example("0-d", randn(), shape=(2, 3)),
        Example("one element", randn(1), shape=(4,)),
        Example("new axes", randn(3), shape=(2, 4, 3)),
        *Example("inner axis", randn(2, 1, 3), shape=(2, 4, 3), saves="").layouts(),
        Example("same shape", randn(3, 4), shape=(3, 4)),
        Example("to nothing", randn(1, 3), shape=(0, 3)),
        Example("empty", randn(1, 0), shape=(3, 0)),
        Example("used twice", randn(3), call=lambda op, x: ops.matmul(op(x, shape=(2, 3)), x)),
    ], torch=lambda t, x, shape: t.broadcast_to(x, shape), draw=Draw("stretching")),
    Case(ops.concat, [
        Example("one element", randn(1)),
        Example("axis 0", randn(2, 3), randn(4, 3), call=lambda op, a, b: op([a, b])),
        *Example("axis -1", randn(2, 1), randn(2, 3), randn(2, 2), axis=-1, saves="").layouts(),
        Example("axis None", randn(2, 3), randn(4), axis=None),
        Example("an empty one", randn(0, 3), randn(2, 3)),
        Example("used twice", randn(2, 3), call=lambda op, a: op([a, a, ops.square(a)])),
        Example("frozen", Frozen(randn(2, 3)), randn(1, 3)),
    ], call=_of_a_list, draw=Draw("joining")),
    Case(ops.stack, [
        Example("one array", randn(3)),
        Example("0-d", randn(), randn()),
        Example("axis 0", randn(2, 3), randn(2, 3)),
        *Example("axis 1", randn(2, 3), randn(2, 3), randn(2, 3), axis=1, saves="").layouts(),
        Example("axis -1", randn(2, 3), randn(2, 3), axis=-1),
        Example("empty", randn(0, 3), randn(0, 3)),
        Example("used twice", randn(2, 3), call=lambda op, a: op([a, a])),
        Example("frozen", Frozen(randn(3)), randn(3)),
    ], call=_of_a_list, draw=Draw("stacking")),
    Case(ops.split, [
        Example("one element", randn(1), sections=1),
        Example("equal parts", randn(6, 2), sections=3),
        Example("axis -1", randn(2, 6), sections=2, axis=-1),
        *Example("sizes", randn(2, 6), sections=(1, 3, 2), axis=1, saves="").layouts(),
        Example("a part of nothing", randn(4), sections=[0, 3, 1]),
        Example("empty", randn(0, 4), sections=2, axis=1),
        Example("one part used", randn(6), call=lambda op, x: op(x, sections=3)[1]),
        Example("a part used twice", randn(4), call=lambda op, x: ops.multiply(*op(x, sections=2)[:1] * 2)),
        Example("parts added", randn(4, 2), call=lambda op, x: ops.add(*op(x, sections=2))),
    ], draw=Draw("splitting")),
    Case(ops.tile, [
        Example("0-d", randn(), repetitions=3),
        Example("one element", randn(1), repetitions=(2, 3)),
        Example("an int", randn(2, 3), repetitions=2),
        *Example("every axis", randn(2, 3), repetitions=(3, 2), saves="").layouts(),
        Example("more axes", randn(2, 3), repetitions=(2, 1, 2)),
        Example("fewer axes", randn(2, 2, 3), repetitions=(2,)),
        Example("once", randn(2, 3), repetitions=(1, 1)),
        Example("no times", randn(2, 3), repetitions=(0, 1)),
        Example("empty", randn(0, 3), repetitions=(2, 2)),
        Example("used twice", randn(4), call=lambda op, x: ops.multiply(op(x, repetitions=(2, 1)), x)),
    ], numpy=lambda x, repetitions: np.tile(x, repetitions), torch=lambda t, x, repetitions: t.tile(x, repetitions),
       draw=Draw("tiling")),
    Case(ops.repeat, [
        Example("0-d", randn(), repeats=3),
        Example("one element", randn(1), repeats=2),
        Example("flat", randn(2, 3), repeats=2),
        Example("axis 0", randn(2, 3), repeats=3, axis=0),
        *Example("axis -1", randn(2, 3), repeats=2, axis=-1, saves="int64(6,)").layouts(),
        Example("a count each", randn(2, 3), repeats=np.array([1, 0, 3]), axis=1),
        Example("a list of counts", randn(3), repeats=[2, 1, 2]),
        Example("no times", randn(2, 3), repeats=0, axis=0),
        Example("empty", randn(0, 3), repeats=2, axis=1),
        Example("used twice", randn(4), call=lambda op, x: ops.multiply(op(x, repeats=4), ops.tile(x, repetitions=4))),
        Example("counts as a tensor", randn(3), integers(0, 3, 3), call=lambda op, x, n: op(x, repeats=n)),
    ], draw=Draw("repeating")),
    Case(ops.moveaxis, [
        Example("one element", randn(1, 1), source=0, destination=1),
        *Example("to the end", randn(2, 3, 4), source=0, destination=-1, saves="").layouts(),
        Example("two axes", randn(2, 3, 4), source=(0, 2), destination=(1, 0)),
        Example("empty", randn(0, 3), source=0, destination=1),
        Example("used twice", randn(3, 3), call=lambda op, x: ops.matmul(x, op(x, source=0, destination=1))),
    ], torch=lambda t, x, source, destination: t.moveaxis(x, source, destination)),
    Case(ops.diagonal, [
        Example("one element", randn(1, 1)),
        Example("square", randn(3, 3)),
        *Example("stack", randn(2, 3, 4), offset=1, saves="").layouts(),
        Example("below", randn(3, 4), offset=-2),
        Example("outside", randn(3, 4), offset=5),
        Example("empty", randn(0, 3)),
        Example("used twice", randn(3, 3), call=lambda op, x: ops.matmul(x, op(x))),
    ], numpy=lambda x, offset=0: np.diagonal(x, offset, -2, -1),
       torch=lambda t, x, offset=0: t.diagonal(x, offset, -2, -1)),
    Case(ops.flip, [
        Example("0-d", randn()),
        Example("one element", randn(1)),
        Example("all axes", randn(2, 3, 4), saves=""),
        Example("axis 0", randn(3, 4), axis=0),
        *Example("two axes", randn(2, 3, 4), axis=(0, -1)).layouts(),
        Example("empty", randn(0, 3), axis=1),
        Example("used twice", randn(4), call=lambda op, x: ops.multiply(x, op(x))),
    ], draw=Draw("flipping")),
    Case(ops.roll, [
        Example("0-d", randn(), shift=1),
        Example("one element", randn(1), shift=1),
        Example("flat", randn(2, 3), shift=2),
        *Example("axis 1", randn(2, 3), shift=1, axis=1, saves="").layouts(),
        Example("back", randn(5), shift=-2, axis=0),
        Example("further than it is long", randn(3), shift=7),
        Example("two axes", randn(3, 4), shift=(1, -2), axis=(0, 1)),
        Example("one shift for two axes", randn(3, 4), shift=1, axis=(0, 1)),
        Example("empty", randn(0, 3), shift=1, axis=0),
        Example("used twice", randn(4), call=lambda op, x: ops.multiply(x, op(x, shift=1))),
    ], torch=lambda t, x, shift, axis: t.roll(x, shift, axis), draw=Draw("rolling")),
    Case(ops.pad, [
        Example("0-d", randn(), pad_width=0),
        Example("one element", randn(1), pad_width=2),
        Example("an int", randn(2, 3), pad_width=1),
        Example("one pair", randn(2, 3), pad_width=(1, 2)),
        *Example("every axis", randn(2, 3), pad_width=((1, 0), (0, 2)), saves="").layouts(),
        Example("nothing", randn(2, 3), pad_width=0),
        Example("a constant", randn(3), pad_width=1, constant=2.5),
        Example("empty", randn(0, 3), pad_width=1),
        Example("used twice", randn(4), call=lambda op, x: ops.multiply(op(x, pad_width=1), op(x, pad_width=(0, 2)))),
    ], draw=Draw("padding")),
    *(Case(op, _triangle(), numpy=reference, draw=Draw("unary", min_dims=2, diagonal=range(-3, 4)))
      for op, reference in ((ops.tril, lambda x, diagonal: np.tril(x, diagonal)),
                            (ops.triu, lambda x, diagonal: np.triu(x, diagonal)))),
]
