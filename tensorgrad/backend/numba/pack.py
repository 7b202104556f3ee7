"""Copies of matrices in the order in which a product reads them: panels as wide as a tile, and rows laid across."""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from tensorgrad.backend.numba.compile import inline, noinline
from tensorgrad.backend.numba.microkernel import MR, VECTOR_BYTES, element, nr_of, number, round_up
from tensorgrad.backend.numba.strided import packed_row

ROW_PADDING = 16  # elements between rows that are read across: or all begin in a few sets of the cache


@inline
def aligned(n: int, x: Any) -> Any:
    """A new row of n elements of x's dtype, that starts where a vector does: none of its vectors lies in two lines."""
    spare = VECTOR_BYTES // x.itemsize
    row = np.empty(n + spare, x.dtype)
    first = (-row.ctypes.data % VECTOR_BYTES) // x.itemsize
    return row[first : first + n]


@noinline
def matrix(n_rows: int, n_columns: int, like: Any) -> Any:
    """A new matrix, with rows that begin where vectors do if its columns are whole vectors."""
    return aligned(n_rows * n_columns, like).reshape(n_rows, n_columns)


@noinline
def pack_rows(x: Any, y: Any, scale: Any) -> None:
    """y = scale x, and zeros in the rows that y has more than x. What y has more in columns is left."""
    for i in range(x.shape[0]):
        xi, yi = packed_row(x[i]), packed_row(y[i])
        for j in range(xi.size):
            yi[j] = xi[j] * scale
    y[x.shape[0] :] = 0


@noinline
def pack_panels(x: Any, panels: Any) -> None:
    """panels (>= n / nr, >= k, nr) = x (k, n) of any strides, its columns in groups; zeros fill up the last."""
    n_inner, n = x.shape
    nr = panels.shape[2]
    n_whole = n // nr
    if x.strides[1] == x.itemsize:
        for k in range(n_inner):  # a row after the other, as they lie in memory
            row = packed_row(x[k])
            for p in range(n_whole):
                for lane in range(0, nr, MR):
                    copy(row, p * nr + lane, panels[p, k], lane)
    else:
        for p in range(n_whole):
            pack_transposed(x[:, p * nr : (p + 1) * nr], panels[p])
    if n_whole * nr < n:
        panel, part = panels[n_whole], x[:, n_whole * nr :]
        for k in range(n_inner):
            for lane in range(nr):
                panel[k, lane] = part[k, lane] if lane < part.shape[1] else 0


@noinline
def pack_transposed(x: Any, y: Any) -> None:
    """y (>= m, >= n) = x (m, n) for packed rows of y, and for x of any strides, quickest where its columns are packed.

    Left undefined is what else y has.
    """
    m, n = x.shape
    blocks_down, blocks_across = 0, 0
    if x.strides[0] == x.itemsize:
        blocks_down, blocks_across = m // MR * MR, n // MR * MR
    for j in range(0, blocks_across, MR):
        for i in range(0, blocks_down, MR):
            copy_transposed(x, y, i, j)
    for i in range(m):
        for j in range(blocks_across if i < blocks_down else 0, n):
            y[i, j] = x[i, j]


def copy(row: Any, start: int, other: Any, at: int) -> None:
    """other[at : at + MR] = row[start : start + MR], for packed rows."""
    other[at : at + MR] = row[start : start + MR]


def copy_transposed(x: Any, y: Any, i: int, j: int) -> None:
    """y[i : i + MR, j : j + MR] = the same of x, whose columns are packed, as the rows of y are."""
    y[i : i + MR, j : j + MR] = x[i : i + MR, j : j + MR]


@noinline
def packed_panels(x: Any) -> Any:
    """x (k, n) of any strides -> (n / nr, k, nr), as `pack_panels` has it."""
    nr = nr_of(x)
    n_panels = round_up(x.shape[1], nr) // nr
    panels = aligned(n_panels * x.shape[0] * nr, x).reshape(n_panels, x.shape[0], nr)
    pack_panels(x, panels)
    return panels


overload(copy, jit_options={"forceinline": True})(
    lambda row, start, other, at: lambda row, start, other, at: _copy(row, start, other, at)
)
overload(copy_transposed, jit_options={"forceinline": True})(
    lambda x, y, i, j: lambda x, y, i, j: _copy_transposed(x, y, i, j)
)


@intrinsic  # type: ignore[untyped-decorator]
def _copy(context: Any, row: Any, start: Any, other: Any, at: Any) -> Any:
    """See `copy`: one vector."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source, target = (context.make_array(signature.args[i])(context, builder, arguments[i]) for i in (0, 2))
        vector = ir.VectorType(source.data.type.pointee, MR)
        size = context.get_abi_sizeof(vector.element)
        places = [
            builder.bitcast(builder.gep(array.data, [index]), vector.as_pointer())
            for array, index in ((source, arguments[1]), (target, arguments[3]))
        ]
        builder.store(builder.load(places[0], align=size), places[1], align=size)
        return context.get_dummy_value()

    return types.void(row, types.int64, other, types.int64), generate


@intrinsic  # type: ignore[untyped-decorator]
def _copy_transposed(context: Any, x: Any, y: Any, i: Any, j: Any) -> Any:
    """See `copy_transposed`: rounds that each swap the blocks beside the diagonal: of one number, of two, of four."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source, target = (context.make_array(signature.args[n])(context, builder, arguments[n]) for n in (0, 1))
        vector = ir.VectorType(source.data.type.pointee, MR)
        numbers = ir.VectorType(ir.IntType(32), MR)
        size = context.get_abi_sizeof(vector.element)
        i, j = arguments[2:]

        def after(start: Any, n: int) -> Any:
            return builder.add(start, number(n))

        lines = [builder.load(element(builder, source, vector, i, after(j, n)), align=size) for n in range(MR)]
        for block in (2**n for n in range(MR.bit_length() - 1)):
            upper = [n if n & block == 0 else MR + n - block for n in range(MR)]
            lower = [n + block if n & block == 0 else MR + n for n in range(MR)]
            for n in range(MR):
                if n & block == 0:
                    pair = lines[n], lines[n + block]
                    lines[n] = builder.shuffle_vector(*pair, ir.Constant(numbers, upper))
                    lines[n + block] = builder.shuffle_vector(*pair, ir.Constant(numbers, lower))
        for n, line in enumerate(lines):
            builder.store(line, element(builder, target, vector, after(i, n), j), align=size)
        return context.get_dummy_value()

    return types.void(x, y, types.int64, types.int64), generate
