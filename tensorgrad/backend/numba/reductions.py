"""Sums and maxima of rows, in a fixed order: so the bits do not depend on how a loop is compiled.

LLVM vectorises a loop that adds to one number only if it may choose the order of the additions. Here the order is
given: elements are added to a vector of 256 bytes, whose halves are added to each other until one number is left. The
elements that remain at the end are added with shorter vectors in the same way.
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

ROWS_PER_BLOCK = 8  # of kernels that allocate a buffer per block
LANES = 64  # partial sums of `sum_exp`


def total(x: Any) -> Any:
    """The sum of a contiguous row."""
    return x.sum()


def total_about(x: Any, mean: Any) -> Any:
    """The sum of x - mean."""
    return (x - mean).sum()


def dot(a: Any, b: Any) -> Any:
    """The sum of a b."""
    return (a * b).sum()


def dot_about(a: Any, b: Any, x: Any, mean: Any) -> Any:
    """The sum of a b (x - mean)."""
    return (a * b * (x - mean)).sum()


def squares_about(x: Any, mean: Any) -> Any:
    """The sum of (x - mean)^2."""
    return ((x - mean) ** 2).sum()


def squares(x: Any) -> float:
    """The sum of x^2, in float64."""
    return float((x.astype(np.float64) ** 2).sum())


def largest(x: Any) -> Any:
    """The largest element of a contiguous row that is not empty. If the row has a NaN, the result may be NaN or not."""
    return x.max()


overload(total)(lambda x: lambda x: _sum_of_products((x,), x.dtype.type(0)))
overload(total_about)(lambda x, mean: lambda x, mean: _sum_of_products(((x, mean),), mean))
overload(dot)(lambda a, b: lambda a, b: _sum_of_products((a, b), a.dtype.type(0)))
overload(dot_about)(lambda a, b, x, mean: lambda a, b, x, mean: _sum_of_products((a, b, (x, mean)), mean))
overload(squares_about)(lambda x, mean: lambda x, mean: _sum_of_products(((x, mean), (x, mean)), mean))
overload(squares)(lambda x: lambda x: _sum_of_products((x, x), 0.0))
overload(largest)(lambda x: lambda x: _largest(x))


@inline
def sum_exp(row: Any, shift: Any, lanes: Any) -> Any:
    """The sum of e^(row - shift); element j is added to lanes[j % LANES], and then the lanes are added."""
    n_full = row.size - row.size % LANES
    lanes[:] = 0
    for start in range(0, n_full, LANES):
        for k in range(LANES):
            lanes[k] += exp(row[start + k] - shift)
    for j in range(n_full, row.size):
        lanes[j - n_full] += exp(row[j] - shift)
    return total(lanes)


@inline
def n_row_blocks(x: Any) -> int:
    """The number of blocks of rows of x (rows, n)."""
    return (x.shape[0] + ROWS_PER_BLOCK - 1) // ROWS_PER_BLOCK


@inline
def rows_of(block: int, x: Any) -> Any:
    """The indices of the rows of x in a block."""
    return range(block * ROWS_PER_BLOCK, min((block + 1) * ROWS_PER_BLOCK, x.shape[0]))


@intrinsic  # type: ignore[untyped-decorator]
def _sum_of_products(context: Any, factors: Any, like: Any) -> Any:
    """The sum of the elementwise product of rows, in the type of `like`. A factor (x, m) stands for x - m."""
    rows = [factor[0] if isinstance(factor, types.BaseTuple) else factor for factor in factors]
    if not all(row.layout == "C" and row.ndim == 1 for row in rows):
        raise TypingError("sums are for contiguous rows")

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        given = []  # pairs of an array and the number to subtract from it, or None
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
    """The larger of two numbers or, element by element, vectors; b if either is NaN."""
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


def _vector_of_maxima(builder: Any, array: Any, kind: Any, least: Any, start: Any, stop: Any) -> Any:
    """A vector whose element k is the maximum of `least` and elements start + k, start + k + width ... < stop."""
    maxima = cgutils.alloca_once_value(builder, spread(builder, least, kind))
    builder.store(spread(builder, least, kind), maxima)
    step = ir.Constant(start.type, kind.count)
    with cgutils.for_range_slice(builder, start, stop, step, start.type) as (index, _):
        pointer = builder.bitcast(builder.gep(array.data, [index]), kind.as_pointer())
        builder.store(larger(builder, builder.load(pointer, align=4), builder.load(maxima)), maxima)
    return builder.load(maxima)


def _vector_of_sums(builder: Any, given: Any, kind: Any, start: Any, stop: Any) -> Any:
    """A vector whose element k is the sum of the products of elements start + k, start + k + width ... < stop."""
    sums = cgutils.alloca_once_value(builder, ir.Constant(kind, None))
    step = ir.Constant(start.type, kind.count)
    with cgutils.for_range_slice(builder, start, stop, step, start.type) as (index, _):
        product = None
        for array, shift in given:
            read = ir.VectorType(array.data.type.pointee, kind.count)
            pointer = builder.bitcast(builder.gep(array.data, [index]), read.as_pointer())
            factor = builder.load(pointer, align=4)  # bytes: the rows are aligned to their elements, not to vectors
            factor = factor if read == kind else builder.fpext(factor, kind)
            factor = factor if shift is None else builder.fsub(factor, spread(builder, shift, kind))
            product = factor if product is None else builder.fmul(product, factor)
        builder.store(builder.fadd(builder.load(sums), product), sums)
    return builder.load(sums)


def spread(builder: Any, number: Any, kind: Any) -> Any:
    """A vector of type `kind` with `number` in every element."""
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), number, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(ir.IntType(32), kind.count), None))


def fold(builder: Any, vector: Any, join: Callable[[Any, Any], Any], width: int = 1) -> Any:
    """Reduce a vector to `width` elements (a scalar if 1) by joining its lower and upper half repeatedly."""
    while vector.type.count > width:
        half = vector.type.count // 2
        numbers = ir.VectorType(ir.IntType(32), half)
        lower, upper = (
            builder.shuffle_vector(vector, vector, ir.Constant(numbers, list(range(first, first + half))))
            for first in (0, half)
        )
        vector = join(lower, upper)
    return vector if width > 1 else builder.extract_element(vector, ir.Constant(ir.IntType(32), 0))
