"""Packing: copies of matrices in the order in which the microkernel reads them.

A packed panel (micro-panel in BLIS) holds NR columns of the right operand, row after row, so that the microkernel reads
it from beginning to end.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from tensorgrad.backend.numba.compile import inline, noinline
from tensorgrad.backend.numba.microkernel import MR, VECTOR_BYTES, element, number, round_up
from tensorgrad.backend.numba.strided import contiguous_row

# Rows at a distance of a power of two fall into a few sets of the cache and evict each other. So there is a gap between
# rows that are read side by side, and between panels.
ROW_PADDING = 16  # elements
PANEL_PADDING = 2  # rows of a panel
BLOCK = 8  # rows and columns of what is transposed in registers: a vector of AVX2 in float32, and divides NR


@inline
def aligned(n: int, x: Any) -> Any:
    """A new array of n elements of x's dtype that starts at a multiple of VECTOR_BYTES.

    So no vector lies in two cache lines.
    """
    spare = VECTOR_BYTES // x.itemsize
    row = np.empty(n + spare, x.dtype)
    first = (-row.ctypes.data % VECTOR_BYTES) // x.itemsize
    return row[first : first + n]


@noinline
def matrix(n_rows: int, n_columns: int, like: Any) -> Any:
    """A new matrix of like's dtype. Its rows are aligned to vectors if n_columns is a multiple of a vector's length."""
    return aligned(n_rows * n_columns, like).reshape(n_rows, n_columns)


@noinline
def padded_matrix(n_rows: int, n_columns: int, like: Any) -> Any:
    """A new matrix with more columns, which are 0: up to a multiple of MR, and a gap between rows.

    The microkernel multiplies MR columns at a time. What it makes of those that only fill up is not used, but new
    memory may hold denormal numbers, which take an Intel processor a hundred times as long as others.
    """
    x = matrix(n_rows, round_up(n_columns, MR) + ROW_PADDING, like)
    x[:, n_columns:] = 0
    return x


@noinline
def pack_rows(x: Any, y: Any, scale: Any) -> None:
    """y[:m, :n] = scale x, for x (m, n); further rows of y become zero, further columns are left as they are."""
    for i in range(x.shape[0]):
        xi, yi = contiguous_row(x[i]), contiguous_row(y[i])
        for j in range(xi.size):
            yi[j] = xi[j] * scale
    y[x.shape[0] :] = 0


@noinline
def pack_panels(x: Any, panels: Any) -> None:
    """Pack x (k, n) of any strides into panels (>= n / nr, >= k, nr): panels[p, :k] = x[:, p nr : (p + 1) nr].

    Zeros fill up the last panel if n is not a multiple of nr.
    """
    k, n = x.shape
    nr = panels.shape[2]
    n_full = n // nr
    if x.strides[1] == x.itemsize:
        for i in range(k):  # row after row, in the order of memory
            row = contiguous_row(x[i])
            for p in range(n_full):
                for lane in range(0, nr, BLOCK):
                    copy(row, p * nr + lane, panels[p, i], lane)
    else:
        for p in range(n_full):
            pack_transposed(x[:, p * nr : (p + 1) * nr], panels[p])
    if n_full * nr < n:
        panel, rest = panels[n_full], x[:, n_full * nr :]
        for i in range(k):
            for lane in range(nr):
                panel[i, lane] = rest[i, lane] if lane < rest.shape[1] else 0


@noinline
def pack_transposed(x: Any, y: Any) -> None:
    """y[:m, :n] = x for x (m, n) of any strides and contiguous rows of y; the rest of y is left as it is.

    It is fastest if the columns of x are contiguous: then blocks of BLOCK x BLOCK elements are transposed in registers.
    """
    m, n = x.shape
    m_blocked, n_blocked = 0, 0
    if x.strides[0] == x.itemsize:
        m_blocked, n_blocked = m // BLOCK * BLOCK, n // BLOCK * BLOCK
    for j in range(0, n_blocked, BLOCK):
        for i in range(0, m_blocked, BLOCK):
            copy_transposed(x, y, i, j)
    for i in range(m):
        for j in range(n_blocked if i < m_blocked else 0, n):
            y[i, j] = x[i, j]


def copy(row: Any, start: int, other: Any, other_start: int) -> None:
    """other[other_start : other_start + BLOCK] = row[start : start + BLOCK], for contiguous rows."""
    other[other_start : other_start + BLOCK] = row[start : start + BLOCK]


def copy_transposed(x: Any, y: Any, i: int, j: int) -> None:
    """Copy BLOCK x BLOCK elements from (i, j) on, for contiguous columns of x and contiguous rows of y."""
    y[i : i + BLOCK, j : j + BLOCK] = x[i : i + BLOCK, j : j + BLOCK]


overload(copy, jit_options={"forceinline": True})(
    lambda row, start, other, other_start: lambda row, start, other, other_start: _copy(row, start, other, other_start)
)
overload(copy_transposed, jit_options={"forceinline": True})(
    lambda x, y, i, j: lambda x, y, i, j: _copy_transposed(x, y, i, j)
)


@intrinsic  # type: ignore[untyped-decorator]
def _copy(context: Any, row: Any, start: Any, other: Any, other_start: Any) -> Any:
    """See `copy`: one load and one store of a vector."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source, target = (context.make_array(signature.args[i])(context, builder, arguments[i]) for i in (0, 2))
        vector = ir.VectorType(source.data.type.pointee, BLOCK)
        size = context.get_abi_sizeof(vector.element)
        pointers = [
            builder.bitcast(builder.gep(array.data, [index]), vector.as_pointer())
            for array, index in ((source, arguments[1]), (target, arguments[3]))
        ]
        builder.store(builder.load(pointers[0], align=size), pointers[1], align=size)
        return context.get_dummy_value()

    return types.void(row, types.int64, other, types.int64), generate


@intrinsic  # type: ignore[untyped-decorator]
def _copy_transposed(context: Any, x: Any, y: Any, i: Any, j: Any) -> Any:
    """See `copy_transposed`: rounds that swap the off-diagonal blocks, of one element, then of two, then of four."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source, target = (context.make_array(signature.args[n])(context, builder, arguments[n]) for n in (0, 1))
        vector = ir.VectorType(source.data.type.pointee, BLOCK)
        numbers = ir.VectorType(ir.IntType(32), BLOCK)
        size = context.get_abi_sizeof(vector.element)
        i, j = arguments[2:]

        def after(start: Any, n: int) -> Any:
            return builder.add(start, number(n))

        rows = [builder.load(element(builder, source, vector, i, after(j, n)), align=size) for n in range(BLOCK)]
        for block in (2**n for n in range(BLOCK.bit_length() - 1)):
            upper = [n if n & block == 0 else BLOCK + n - block for n in range(BLOCK)]
            lower = [n + block if n & block == 0 else BLOCK + n for n in range(BLOCK)]
            for n in range(BLOCK):
                if n & block == 0:
                    pair = rows[n], rows[n + block]
                    rows[n] = builder.shuffle_vector(*pair, ir.Constant(numbers, upper))
                    rows[n + block] = builder.shuffle_vector(*pair, ir.Constant(numbers, lower))
        for n, row in enumerate(rows):
            builder.store(row, element(builder, target, vector, after(i, n), j), align=size)
        return context.get_dummy_value()

    return types.void(x, y, types.int64, types.int64), generate
