"""Reading by index."""

import numpy as np

from tensorgrad import ops
from tensorgrad.backend import Array
from tensorgrad.gradcheck.cases.case import Case, Draw, Example
from tensorgrad.gradcheck.cases.inputs import booleans, distinct, integers, randn

_rows = np.array([2, 0, 2, 2, 1])  # row 2 three times
_mask = np.array([True, False, True, True])
_nothing = np.array([], dtype=np.int64)


def _index_add(x: Array, indices: Array, source: Array, axis: int = 0) -> Array:
    y = x.copy()
    np.add.at(y.swapaxes(0, axis), indices, source.swapaxes(0, axis))
    return y


cases = [
    Case(ops.getitem, [
        Example("an int", randn(4, 3), key=1),
        Example("a negative int", randn(4, 3), key=-1),
        Example("to 0-d", randn(2, 3), key=(1, 2)),
        Example("one element", randn(1), key=0),
        Example("nothing of 0-d", randn(), key=()),
        Example("a slice", randn(5, 3), key=slice(1, 4)),
        *Example("slices with steps", randn(5, 6), key=(slice(None, None, 2), slice(1, None, 3)), saves="").layouts(),
        Example("negative steps", randn(5, 4), key=(slice(None, None, -1), slice(3, 0, -2))),
        Example("an empty slice", randn(5, 3), key=slice(3, 3)),
        Example("an int and a slice", randn(3, 4, 2), key=(slice(None), 1, slice(None))),
        Example("None", randn(3, 4), key=(slice(None), None, slice(1, 3))),
        Example("Ellipsis", randn(2, 3, 4), key=(..., 1)),
        Example("Ellipsis in the middle", randn(2, 3, 4), key=(0, ..., slice(1, 3))),
        Example("Ellipsis alone", randn(2, 3), key=...),
        Example("an array", randn(4, 3), key=np.array([3, 0, -1])),
        Example("repeated indices", randn(3, 2), key=_rows),
        Example("a list", randn(3, 2), key=[0, 0, 2]),
        Example("no indices", randn(3, 2), key=_nothing),
        Example("two arrays", randn(3, 4), key=(np.array([0, 2, 0]), np.array([1, 1, 1]))),
        Example("arrays that broadcast", randn(3, 4), key=(np.array([[0], [2]]), np.array([1, 3, 3]))),
        Example("arrays on either side", randn(3, 2, 4), key=(np.array([0, 2]), slice(None), np.array([1, 1]))),
        *Example("a slice and an array", randn(3, 4), key=(slice(0, 2), _rows), saves="int64(5,)").layouts(),
        Example("a tensor", randn(2, 3), integers(0, 3, 4), call=lambda op, x, i: op(x, key=(slice(None), i))),
        Example("a mask", randn(4, 3), key=_mask),
        Example("a mask of every axis", randn(3, 4), key=np.eye(3, 4) == 1),
        Example("a mask of the last axis", randn(2, 4), key=(slice(None), _mask)),
        Example("a mask of nothing", randn(4, 3), key=np.zeros(4, bool)),
        Example("True", randn(2, 3), key=True),
        Example("of nothing", randn(0, 3), key=(slice(None), 1)),
        Example("used twice", randn(3, 4), call=lambda op, x: ops.add(op(x, key=slice(1, None)), op(x, key=0))),
        Example("by operator", randn(3, 4), call=lambda op, x: x[1:, [0, 0, 2]] * x[0, 1]),
    ], numpy=lambda x, key: x[key], draw=Draw("indexing")),
    Case(ops.take, [
        Example("one element", randn(1), np.array([0])),
        Example("one index", randn(4), np.array(2)),
        Example("axis 0", randn(4, 3), np.array([3, 0]), axis=0),
        *Example("axis -1", randn(2, 3), np.array([2, 2, 0, 1]), axis=-1, saves="int64(4,)").layouts(),
        Example("repeated indices", randn(3, 2), _rows, axis=0),
        Example("negative indices", randn(3, 2), np.array([-1, 2, -3]), axis=0),
        Example("a matrix of indices", randn(2, 4, 3), integers(0, 4, 2, 5), axis=1),
        Example("small integers", randn(4), np.array([3, 1, 1], np.uint8)),
        Example("no indices", randn(3, 2), _nothing, axis=0),
        Example("empty", randn(0, 3), np.array([1, 1]), axis=1),
        Example("used twice", randn(3, 3), _rows, call=lambda op, x, i: ops.matmul(op(x, i, axis=0), x)),
    ], draw=Draw("taking")),
    Case(ops.take_along_axis, [
        Example("one element", randn(1), np.array([0])),
        *Example("last axis", randn(2, 3), np.array([[2, 0], [1, 1]]), saves="int64(2,2) int64(2,1)").layouts(),
        Example("axis 0", randn(3, 2), np.array([[2, 0], [2, 1], [0, 0], [1, 1]]), axis=0),
        Example("middle axis", randn(2, 4, 3), integers(0, 4, 2, 2, 3), axis=1),
        Example("negative indices", randn(2, 3), np.array([[-1], [-3]])),
        Example("indices broadcast", randn(3, 4), np.array([[1, 1, 0]])),
        Example("x broadcasts", randn(1, 4), np.array([[1], [2], [2]])),
        Example("empty", randn(0, 3), np.zeros((0, 2), np.int64)),
        Example("used twice", randn(3, 4), integers(0, 4, 3, 4), call=lambda op, x, i: ops.multiply(op(x, i), x)),
    ], draw=Draw("taking_along_axis")),
    Case(ops.sort, [
        Example("one element", randn(1)),
        *Example("last axis", distinct(2, 3, 4), saves="int64(2,3,4) int64(2,1,1) int64(3,1)").layouts(),
        Example("axis 0, descending", distinct(4, 3), axis=0, descending=True),
        Example("empty", randn(0, 3)),
        Example("used twice", distinct(3, 3), call=lambda op, x: ops.multiply(op(x), x)),
    ], numpy=lambda x, axis=-1, descending=False: np.flip(np.sort(x, axis), axis) if descending else np.sort(x, axis),
       torch=lambda t, x, axis=-1, descending=False: t.sort(x, axis, descending).values),
    Case(ops.topk, [
        Example("one element", randn(1), k=1),
        *Example("last axis", distinct(2, 3, 4), k=2, saves="int64(2,3,2) int64(2,1,1) int64(3,1)").layouts(),
        Example("axis 0", distinct(4, 3), k=3, axis=0),
        Example("none", distinct(4), k=0),
        Example("empty", randn(0, 3), k=1),
        Example("used twice", distinct(3, 3), call=lambda op, x: ops.multiply(op(x, k=1)[0], x)),
    ], call=lambda op, x, **options: op(x, **options)[0],
       numpy=lambda x, k, axis=-1: [np.take(np.flip(np.sort(x, axis), axis), range(k), axis)],
       torch=lambda t, x, k, axis=-1: t.topk(x, k, axis).values),
    Case(ops.masked_fill, [
        Example("one element", randn(1), np.array([True]), 2.0),
        *Example("a mask", randn(3, 4), booleans(3, 4), 1.5, saves="bool(3,4)").layouts(),
        Example("a mask that broadcasts", randn(3, 4), booleans(4), 0.0),
        Example("empty", randn(0, 3), booleans(3), 0.0),
        Example("used twice", randn(3, 4), booleans(3, 4), call=lambda op, x, m: ops.multiply(op(x, m, 1.0), x)),
    ], numpy=lambda x, mask, value: np.where(mask, value, x),
       torch=lambda t, x, mask, value: x.masked_fill(mask, value)),
    Case(ops.index_add, [
        Example("one element", randn(1), np.array([0]), randn(1)),
        *Example("rows", randn(4, 3), _rows, randn(5, 3), saves="int64(5,)").layouts(),
        Example("axis 1", randn(2, 4), np.array([3, 3, -1]), randn(2, 3), axis=1),
        Example("empty", randn(2, 3), _nothing, randn(0, 3)),
        Example("used twice", randn(3, 2), np.array([2, 0, 2]), call=lambda op, x, i: op(x, i, ops.square(x))),
    ], numpy=_index_add, torch=lambda t, x, i, source, axis=0: t.index_add(x, axis, i % x.shape[axis], source)),
    Case(ops.embedding, [
        Example("one element", randn(1, 1), np.array([0])),
        Example("one index", randn(4, 3), np.array(2)),
        *Example("a batch", randn(5, 3), integers(0, 5, 2, 4), saves="int64(2,4)").layouts(),
        Example("repeated indices", randn(3, 2), _rows),
        Example("small integers", randn(4, 2), np.array([3, 3, 0], np.uint8)),
        Example("no indices", randn(3, 2), _nothing),
        Example("rows of nothing", randn(3, 0), _rows),
        Example("used twice", randn(3, 2), _rows, call=lambda op, w, i: ops.matmul(op(w, i), ops.matrix_transpose(w))),
    ], numpy=lambda w, i: w[i], torch=lambda t, w, i: w[i], draw=Draw("embeddings")),
]
