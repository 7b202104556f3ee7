"""Operations on all columns of a matrix with NR columns, for the softmax of attention: a row is two vectors.

Numba unrolls a loop over so few elements before it can vectorise it, so these are written in LLVM's own language.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from tensorgrad.backend.numba.microkernel import NR_VECTORS, VECTOR_BYTES
from tensorgrad.backend.numba.reductions import fold, larger

UNROLL_ROWS = 4  # independent reductions: an operation does not wait for the one before


def largest_of_columns(x: Any, n: int, y: Any) -> None:
    """y = the largest of x[:n] in every column, or -inf if n is 0. With a NaN in a column, it may be NaN or not."""
    y[:] = x[:n].max(axis=0, initial=-np.inf)


def total_of_columns(x: Any, n: int, y: Any) -> None:
    """y = the sum of x[:n] in every column."""
    y[:] = x[:n].sum(axis=0)


def subtract_from_columns(x: Any, n: int, y: Any) -> None:
    """x[:n] -= y."""
    x[:n] -= y


def multiply_columns(x: Any, n: int, y: Any) -> None:
    """x[:n] *= y."""
    x[:n] *= y


def _reduction(start: float, join: Callable[[Any, Any, Any], Any]) -> Any:
    """An intrinsic: y = `start` joined with all rows of x[:n], UNROLL_ROWS at a time and then the rest."""

    @intrinsic  # type: ignore[untyped-decorator]
    def fill(context: Any, x: Any, n: Any, y: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            source, target = _data(context, builder, signature, arguments)
            row = _row_of(source)
            result, first = ir.Constant(row, [start] * row.count), ir.Constant(arguments[1].type, 0)
            for n_rows in (UNROLL_ROWS, 1):
                step = ir.Constant(first.type, n_rows)
                rows = ir.VectorType(row.element, n_rows * row.count)
                last = builder.sub(arguments[1], builder.srem(arguments[1], step))
                joined = cgutils.alloca_once_value(builder, ir.Constant(rows, [start] * rows.count))
                with cgutils.for_range_slice(builder, first, last, step, first.type) as (index, _):
                    value = builder.load(_pointer(builder, source, index, rows), align=4)
                    builder.store(join(builder, value, builder.load(joined)), joined)
                pairs = functools.partial(join, builder)
                result, first = pairs(fold(builder, builder.load(joined), pairs, row.count), result), last
            builder.store(result, _pointer(builder, target, ir.Constant(first.type, 0), row), align=4)
            return context.get_dummy_value()

        return types.void(x, types.int64, y), generate

    return fill


def _row_operation(operation: str) -> Any:
    """An intrinsic: x[i] = operation(x[i], y) for every row of x[:n], with an operation of LLVM."""

    @intrinsic  # type: ignore[untyped-decorator]
    def change(context: Any, x: Any, n: Any, y: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            target, source = _data(context, builder, signature, arguments)
            row = _row_of(target)
            zero, one = (ir.Constant(arguments[1].type, number) for number in (0, 1))
            other = builder.load(_pointer(builder, source, zero, row), align=4)
            with cgutils.for_range_slice(builder, zero, arguments[1], one, zero.type) as (index, _):
                pointer = _pointer(builder, target, index, row)
                value = getattr(builder, operation)(builder.load(pointer, align=4), other)
                builder.store(value, pointer, align=4)
            return context.get_dummy_value()

        return types.void(x, types.int64, y), generate

    return change


def _data(context: Any, builder: Any, signature: Any, arguments: Any) -> list[Any]:
    """Pointers to the elements of x and y."""
    return [context.make_array(signature.args[i])(context, builder, arguments[i]).data for i in (0, 2)]


def _row_of(data: Any) -> Any:
    """The vector type of a row of NR elements."""
    real = data.type.pointee
    return ir.VectorType(real, NR_VECTORS * VECTOR_BYTES // (4 if isinstance(real, ir.FloatType) else 8))


def _pointer(builder: Any, data: Any, row: Any, kind: Any) -> Any:
    """A pointer of type `kind` to a row."""
    width = ir.Constant(row.type, _row_of(data).count)
    return builder.bitcast(builder.gep(data, [builder.mul(row, width)]), kind.as_pointer())


_largest, _total = _reduction(-np.inf, larger), _reduction(0.0, lambda builder, a, b: builder.fadd(a, b))
_subtract, _multiply = _row_operation("fsub"), _row_operation("fmul")
overload(largest_of_columns)(lambda x, n, y: lambda x, n, y: _largest(x, n, y))
overload(total_of_columns)(lambda x, n, y: lambda x, n, y: _total(x, n, y))
overload(subtract_from_columns)(lambda x, n, y: lambda x, n, y: _subtract(x, n, y))
overload(multiply_columns)(lambda x, n, y: lambda x, n, y: _multiply(x, n, y))
