"""Sums in an order that is fixed, so that they are the same however and wherever they are compiled; and the maximum.

A loop that adds to one number is vectorised only if its order is given up to the compiler. Here vectors are added
element by element to a vector of 256 bytes, the halves of that to each other until one number is left, and the same
with shorter vectors for what is over at the end. Maxima are taken so, too.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.errors import TypingError
from numba.extending import intrinsic, overload

from tensorgrad.backend.numba.compile import inline
from tensorgrad.backend.numba.mathematics import exp

ROWS_PER_BLOCK = 8  # that many rows at a time are for one thread, where there is something to allocate for them
LANES = 64


def total(x: Any) -> Any:
    """The sum of a contiguous row."""
    return x.sum()


def dot(a: Any, b: Any) -> Any:
    """The sum of a b."""
    return (a * b).sum()


def dot_about(a: Any, b: Any, x: Any, middle: Any) -> Any:
    """The sum of a b (x - middle)."""
    return (a * b * (x - middle)).sum()


def squares_about(x: Any, middle: Any) -> Any:
    """The sum of (x - middle)^2."""
    return ((x - middle) ** 2).sum()


def squares(x: Any) -> float:
    """The sum of x^2, in float64."""
    return float((x.astype(np.float64) ** 2).sum())


def largest(x: Any) -> Any:
    """The largest element of a contiguous row that is not empty; NaN where one is found on the way, or not."""
    return x.max()


overload(total)(lambda x: lambda x: _sum_of_products((x,), x.dtype.type(0)))
overload(dot)(lambda a, b: lambda a, b: _sum_of_products((a, b), a.dtype.type(0)))
overload(dot_about)(lambda a, b, x, middle: lambda a, b, x, middle: _sum_of_products((a, b, (x, middle)), middle))
overload(squares_about)(lambda x, middle: lambda x, middle: _sum_of_products(((x, middle), (x, middle)), middle))
overload(squares)(lambda x: lambda x: _sum_of_products((x, x), 0.0))
overload(largest)(lambda x: lambda x: _largest(x))


@inline
def sum_exp(row: Any, shift: Any, lanes: Any) -> Any:
    """The sum of e^(row - shift); element j is added to lane j % 64, and then all lanes."""
    whole = row.size - row.size % LANES
    lanes[:] = 0
    for start in range(0, whole, LANES):
        for k in range(LANES):
            lanes[k] += exp(row[start + k] - shift)
    for j in range(whole, row.size):
        lanes[j - whole] += exp(row[j] - shift)
    return total(lanes)


@inline
def n_row_blocks(x: Any) -> int:
    """How many blocks of rows x (rows, n) has."""
    return (x.shape[0] + ROWS_PER_BLOCK - 1) // ROWS_PER_BLOCK


@inline
def rows_of(block: int, x: Any) -> Any:
    """The numbers of the rows in a block."""
    return range(block * ROWS_PER_BLOCK, min((block + 1) * ROWS_PER_BLOCK, x.shape[0]))


@intrinsic  # type: ignore[untyped-decorator]
def _sum_of_products(context: Any, factors: Any, like: Any) -> Any:
    """The sum of the elementwise product of some rows, in the type of `like`; (x, m) among them stands for x - m."""
    rows = [factor[0] if isinstance(factor, types.BaseTuple) else factor for factor in factors]
    if not all(row.layout == "C" and row.ndim == 1 for row in rows):
        raise TypingError("sums are for contiguous rows")

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        given = []  # an array, and what is subtracted from it
        for factor, row, value in zip(factors, rows, cgutils.unpack_tuple(builder, arguments[0]), strict=True):
            array, shift = cgutils.unpack_tuple(builder, value) if factor is not row else (value, None)
            given.append((context.make_array(row)(context, builder, array), shift))
        size, real = given[0][0].nitems, arguments[1].type
        result, start = ir.Constant(real, 0.0), ir.Constant(size.type, 0)
        for width in (256 * 8 // like.bitwidth, 8, 1):
            stop = builder.sub(size, builder.urem(size, ir.Constant(size.type, width)))
            vector = _vector_of_sums(builder, given, ir.VectorType(real, width), start, stop)
            result, start = builder.fadd(result, fold(builder, vector, builder.fadd)), stop
        return result

    return like(factors, like), generate


@intrinsic  # type: ignore[untyped-decorator]
def _largest(context: Any, row: Any) -> Any:
    """See `largest`."""
    if row.layout != "C" or row.ndim != 1:
        raise TypingError("maxima are for contiguous rows")

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(row)(context, builder, arguments[0])
        size, real = array.nitems, array.data.type.pointee
        result, start = builder.load(array.data), ir.Constant(size.type, 0)
        for width in (256 * 8 // row.dtype.bitwidth, 8, 1):
            stop = builder.sub(size, builder.urem(size, ir.Constant(size.type, width)))
            vector = _vector_of_maxima(builder, array, ir.VectorType(real, width), result, start, stop)
            result, start = fold(builder, vector, functools.partial(larger, builder)), stop
        return result

    return row.dtype(row), generate


def larger(builder: Any, a: Any, b: Any) -> Any:
    """The larger of two numbers, or vectors; b where either is NaN."""
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


def _vector_of_maxima(builder: Any, array: Any, kind: Any, least: Any, start: Any, stop: Any) -> Any:
    """Element k: the largest of `least` and all elements start + k, start + k + width ... below stop."""
    maxima = cgutils.alloca_once_value(builder, spread(builder, least, kind))
    builder.store(spread(builder, least, kind), maxima)
    step = ir.Constant(start.type, kind.count)
    with cgutils.for_range_slice(builder, start, stop, step, start.type) as (index, _):
        place = builder.bitcast(builder.gep(array.data, [index]), kind.as_pointer())
        builder.store(larger(builder, builder.load(place, align=4), builder.load(maxima)), maxima)
    return builder.load(maxima)


def _vector_of_sums(builder: Any, given: Any, kind: Any, start: Any, stop: Any) -> Any:
    """Element k: the sum of the products of all elements start + k, start + k + width ... below stop."""
    sums = cgutils.alloca_once_value(builder, ir.Constant(kind, None))
    step = ir.Constant(start.type, kind.count)
    with cgutils.for_range_slice(builder, start, stop, step, start.type) as (index, _):
        product = None
        for array, shift in given:
            read = ir.VectorType(array.data.type.pointee, kind.count)
            place = builder.bitcast(builder.gep(array.data, [index]), read.as_pointer())
            factor = builder.load(place, align=4)  # bytes: the rows are aligned to their elements, not to vectors
            factor = factor if read == kind else builder.fpext(factor, kind)
            factor = factor if shift is None else builder.fsub(factor, spread(builder, shift, kind))
            product = factor if product is None else builder.fmul(product, factor)
        builder.store(builder.fadd(builder.load(sums), product), sums)
    return builder.load(sums)


def spread(builder: Any, number: Any, kind: Any) -> Any:
    """A vector of one number."""
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), number, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(ir.IntType(32), kind.count), None))


def fold(builder: Any, vector: Any, join: Callable[[Any, Any], Any], width: int = 1) -> Any:
    """All elements joined to one number, or to a vector of `width`: the lower half to the upper half until it is."""
    while vector.type.count > width:
        half = vector.type.count // 2
        numbers = ir.VectorType(ir.IntType(32), half)
        lower, upper = (
            builder.shuffle_vector(vector, vector, ir.Constant(numbers, list(range(first, first + half))))
            for first in (0, half)
        )
        vector = join(lower, upper)
    return vector if width > 1 else builder.extract_element(vector, ir.Constant(ir.IntType(32), 0))
