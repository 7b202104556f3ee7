"""Products of small matrices that lie in the cache: a tile of the result at a time, which never leaves the registers.

BLAS copies both operands before it multiplies them. For attention's products, 64 rows by a few hundred, that and the
call cost as much as the product itself; here one operand is copied once for many products, and the other never. The
tile's size is that of the register file: two vectors wide and as high as still leaves room for the operands (Goto and
van de Geijn 2008, "Anatomy of High-Performance Matrix Multiplication").
"""

from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from tensorgrad.backend.numba.compile import compiled
from tensorgrad.backend.numba.strided import packed_row
from tensorgrad.backend.numba.sums import spread

AVX512 = bool(llvm.get_host_cpu_features().get("avx512f"))
ROWS = 8 if AVX512 else 4  # of a tile: 8 x 2 of 32 vector registers, or 4 x 2 of 16, hold it
VECTORS = 2
VECTOR = 64 if AVX512 else 32  # bytes
LANES = VECTORS * VECTOR // 4  # columns of a tile of float32; of float64 it takes two tiles for as many
OTHER_LANES = LANES // 2


def n_lanes(x: Any) -> int:
    """Columns of a tile in the dtype of x."""
    return LANES if x.dtype == np.float32 else OTHER_LANES


overload(n_lanes)(
    lambda x: (lambda x: LANES) if x.dtype == types.float32 else (lambda x: OTHER_LANES)
)  # a number that the compiler knows


@compiled
def whole(n: int, step: int) -> int:
    """n, rounded up to a multiple of step."""
    return (n + step - 1) // step * step


@compiled
def panels_of(x: Any) -> Any:
    """x (k, n), its rows packed -> (n / lanes, k, lanes), filled up with zeros: columns in groups as wide as a tile."""
    lanes = n_lanes(x)
    panels = np.empty((whole(x.shape[1], lanes) // lanes, x.shape[0], lanes), x.dtype)
    for i in range(x.shape[0]):
        row = packed_row(x[i])
        for p in range(len(panels)):
            own, part = panels[p, i], row[p * lanes : (p + 1) * lanes]
            for j in range(part.size):
                own[j] = part[j]
            own[part.size :] = 0
    return panels


@compiled
def panels_of_transposed(x: Any) -> Any:
    """x (n, k), its rows packed -> the panels of x^T."""
    lanes = n_lanes(x)
    panels = np.zeros((whole(x.shape[0], lanes) // lanes, x.shape[1], lanes), x.dtype)
    for i in range(x.shape[0]):
        row, own, j = packed_row(x[i]), panels[i // lanes], i % lanes
        for k in range(row.size):
            own[k, j] = row[k]
    return panels


def tile(a: Any, row: int, first: int, last: int, panel: Any, c: Any, at: int, column: int, add: bool) -> None:
    """c[at : at + ROWS, column : column + lanes] = a[row : row + ROWS, first:last] @ panel[first:last], or += with add.

    a (m, k) of any strides, panel (k, lanes), c with packed rows, all of one dtype.
    """
    product = a[row : row + ROWS, first:last] @ panel[first:last]
    c = c[at : at + ROWS, column : column + panel.shape[1]]
    c[...] = c + product if add else product


@overload(tile, jit_options={"forceinline": True})  # type: ignore[untyped-decorator]
def _compiled_tile(a: Any, row: Any, first: Any, last: Any, panel: Any, c: Any, at: Any, column: Any, add: Any) -> Any:
    def compiled_tile(
        a: Any, row: Any, first: Any, last: Any, panel: Any, c: Any, at: Any, column: Any, add: Any
    ) -> None:
        _tile(a, row, first, last, panel, c, at, column, add)

    return compiled_tile


@intrinsic  # type: ignore[untyped-decorator]
def _tile(
    context: Any, a: Any, row: Any, first: Any, last: Any, panel: Any, c: Any, at: Any, column: Any, add: Any
) -> Any:
    """See `tile`: one vector product and sum a vector of the tile, for every element of a row of `a`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        a_view, panel_view, c_view = (
            context.make_array(signature.args[i])(context, builder, arguments[i]) for i in (0, 4, 5)
        )
        row, first, last, at, column, add = (arguments[i] for i in (1, 2, 3, 6, 7, 8))
        scalar = c_view.data.type.pointee
        size = context.get_abi_sizeof(scalar)
        vector = ir.VectorType(scalar, VECTOR // size)
        fma = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(vector, [vector] * 3), f"llvm.fma.v{vector.count}f{size * 8}"
        )

        def element(view: Any, kind: Any, *index: Any) -> Any:
            """A pointer to view[index], as one to that kind."""
            place = builder.ptrtoint(view.data, row.type)
            for i, stride in zip(index, cgutils.unpack_tuple(builder, view.strides), strict=True):
                place = builder.add(place, builder.mul(i, stride))
            return builder.inttoptr(place, kind.as_pointer())

        def number(n: int) -> Any:
            return ir.Constant(row.type, n)

        rows = [builder.add(row, number(i)) for i in range(ROWS)]
        columns = [number(v * VECTOR // size) for v in range(VECTORS)]
        places = [
            [element(c_view, vector, builder.add(at, number(i)), builder.add(column, j)) for j in columns]
            for i in range(ROWS)
        ]
        sums = [[cgutils.alloca_once_value(builder, ir.Constant(vector, None)) for _ in columns] for _ in rows]
        pairs = [(place, total) for i in range(ROWS) for place, total in zip(places[i], sums[i], strict=True)]
        for _, total in pairs:
            builder.store(ir.Constant(vector, None), total)
        with builder.if_then(add):
            for place, total in pairs:
                builder.store(builder.load(place, align=size), total)
        with cgutils.for_range_slice(builder, first, last, number(1), row.type) as (k, _):
            right = [builder.load(element(panel_view, vector, k, j), align=size) for j in columns]
            for i in range(ROWS):
                left = spread(builder, builder.load(element(a_view, scalar, rows[i], k)), vector)
                for v in range(VECTORS):
                    builder.store(builder.call(fma, (left, right[v], builder.load(sums[i][v]))), sums[i][v])
        for place, total in pairs:
            builder.store(builder.load(total), place, align=size)
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(a, i64, i64, i64, panel, c, i64, i64, types.boolean), generate
