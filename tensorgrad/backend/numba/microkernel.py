"""A product of a few rows and a panel of columns: a tile of the result, which never leaves the registers.

The tile's size is that of the register file: two vectors wide and as high as still leaves room for the operands. All
matrix products are made of it, attention's and those of linear layers (Goto and van de Geijn 2008, "Anatomy of
High-Performance Matrix Multiplication").
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from tensorgrad.backend.numba.compile import has_instructions, inline, noinline
from tensorgrad.backend.numba.reductions import spread

AVX512 = has_instructions("avx512f")
MR = 8 if AVX512 else 4  # of a tile: 8 x 2 of 32 vector registers, or 4 x 2 of 16, hold it
NR_VECTORS = 2
VECTOR_BYTES = 64 if AVX512 else 32  # bytes
I64 = ir.IntType(64)
UNROLL = 4  # products a turn of the loop: what counts and compares takes the place of a product now and then
NR = NR_VECTORS * VECTOR_BYTES // 4  # columns of a tile of float32; of float64 it takes two tiles for as many
NR_FLOAT64 = NR // 2


def nr_of(x: Any) -> int:
    """Columns of a tile in the dtype of x."""
    return NR if x.dtype == np.float32 else NR_FLOAT64


overload(nr_of)(
    lambda x: (lambda x: NR) if x.dtype == types.float32 else (lambda x: NR_FLOAT64)
)  # a number that the compiler knows


@inline
def round_up(n: int, step: int) -> int:
    """n, rounded up to a multiple of step."""
    return (n + step - 1) // step * step


def microkernel(
    a: Any, row: int, first: int, last: int, panels: Any, p: int, c: Any, at: int, column: int, add: bool
) -> None:
    """c[at : at + MR, column : column + nr] = a[row : row + MR, first:last] @ panels[p, first:last], or +=.

    a (m, k), Fortran-ordered or with packed rows, panels (n, k, nr) and c with packed rows, all of one dtype.
    """
    product = a[row : row + MR, first:last] @ panels[p, first:last]
    c = c[at : at + MR, column : column + panels.shape[2]]
    c[...] = c + product if add else product


overload(microkernel, jit_options={"forceinline": True})(
    lambda a, row, first, last, panels, p, c, at, column, add: (
        lambda a, row, first, last, panels, p, c, at, column, add: _microkernel(
            a, row, first, last, panels, p, c, at, column, add
        )
    )
)


@noinline
def microkernel_transposed(a: Any, n: int, first: int, last: int, panels: Any, c: Any, at: int, add: bool) -> None:
    """c[at : at + n] = a[first:last, :n]^T @ panels[0, first:last], or +=, up to whole tiles of rows."""
    across = a.T
    for d in range(0, n, MR):
        microkernel(across, d, first, last, panels, 0, c, at + d, 0, add)


@intrinsic  # type: ignore[untyped-decorator]
def _microkernel(
    context: Any, a: Any, row: Any, first: Any, last: Any, panels: Any, p: Any, c: Any, at: Any, column: Any, add: Any
) -> Any:
    """See `tile`: addresses, and a call of `microkernel_function`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        a_view, panel_view, c_view = (
            context.make_array(signature.args[i])(context, builder, arguments[i]) for i in (0, 4, 6)
        )
        row, first, last, p, at, column, add = (arguments[i] for i in (1, 2, 3, 5, 7, 8, 9))
        scalar = c_view.data.type.pointee
        a_strides = cgutils.unpack_tuple(builder, a_view.strides)
        # While the tiles of a strip are made, the rows of the next come nearer: a tile sees to some of them.
        size = context.get_abi_sizeof(scalar)
        seen_to = builder.and_(builder.mul(p, number(turns_a_line(size))), number(MR - 1))
        next_row = builder.add(builder.add(row, number(MR)), seen_to)
        arguments = [
            element(builder, a_view, scalar, row, first),
            a_strides[0],
            a_strides[1] if a.layout == "F" else number(context.get_abi_sizeof(scalar)),
            element(builder, a_view, scalar, next_row, first),
            element(builder, panel_view, scalar, p, first, number(0)),
            element(builder, c_view, scalar, at, column),
            cgutils.unpack_tuple(builder, c_view.strides)[0],
            builder.sub(last, first),
            builder.trunc(add, ir.IntType(1)),
        ]
        integers = [builder.ptrtoint(x, I64) if isinstance(x.type, ir.PointerType) else x for x in arguments]
        builder.call(microkernel_function(builder.module, scalar, size, a.layout == "F"), integers)
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(a, i64, i64, i64, panels, i64, c, i64, i64, types.boolean), generate


def microkernel_function(module: Any, scalar: Any, size: int, across: bool) -> Any:
    """One vector product and sum a vector of the tile, for every element of a row: compiled once a kernel.

    `step` is the distance between the elements of a row of a; they are packed, or, across, those of a column are.
    """
    kind = ir.FunctionType(ir.VoidType(), [I64] * 8 + [ir.IntType(1)])
    name = f"tensorgrad_microkernel_{size}_{int(across)}"
    if name in module.globals:
        return module.globals[name]
    function = ir.Function(module, kind, name)
    function.linkage = "linkonce_odr"
    function.attributes.add("noinline")
    builder = ir.IRBuilder(function.append_basic_block())
    a, a_stride, step, next_row, panel, c, c_stride, n, add = function.args
    vector = ir.VectorType(scalar, VECTOR_BYTES // size)
    fma = cgutils.get_or_insert_function(
        module, ir.FunctionType(vector, [vector] * 3), f"llvm.fma.v{vector.count}f{size * 8}"
    )

    def after(start: Any, distance: Any, times: int) -> Any:
        return builder.add(start, builder.mul(distance, number(times)))

    def pointer(place: Any, kind: Any) -> Any:
        return builder.inttoptr(place, kind.as_pointer())

    def variable(value: Any) -> Any:
        result = cgutils.alloca_once(builder, value.type)
        builder.store(value, result)
        return result

    rows = range(MR)
    places = [
        pointer(after(after(c, c_stride, i), number(VECTOR_BYTES), v), vector) for i in rows for v in range(NR_VECTORS)
    ]  # fmt: skip
    for place in places:  # wanted when the sums are done
        fetch(builder, place, to_write=True)
    sums = [variable(ir.Constant(vector, None)) for _ in places]
    starts = [opaque(builder, after(a, a_stride, i)) for i in rows]
    way, place_in_panel = variable(number(0)), variable(panel)  # from the starts, and a place

    def add_products(count: int) -> None:
        """The next elements of every row of a, and rows of the panel."""
        along, place = opaque(builder, builder.load(way)), opaque(builder, builder.load(place_in_panel))
        if count == UNROLL:
            further = builder.add(next_row, along)
            if not across:  # a line of one row, then the same of the next
                turn = builder.udiv(along, number(UNROLL * size))
                turn = builder.and_(turn, number(turns_a_line(size) - 1))
                further = builder.add(further, builder.mul(turn, a_stride))
            fetch(builder, pointer(further, scalar), to_write=False)
        distance = step if across else number(size)
        for k in range(count):
            rights = [after(place, number(VECTOR_BYTES), k * NR_VECTORS + v) for v in range(NR_VECTORS)]
            right = [builder.load(pointer(x, vector), align=size) for x in rights]
            if across:  # opaque, or they are all loaded at the start of the turn, and have to leave the registers
                column = opaque(builder, builder.add(a, after(along, step, k)))
                lefts = [after(column, number(size), i) for i in rows]
            else:
                lefts = [after(builder.add(starts[i], along), number(size), k) for i in rows]
            for i in rows:
                left = spread(builder, builder.load(pointer(lefts[i], scalar)), vector)
                for v in range(NR_VECTORS):
                    total = sums[i * NR_VECTORS + v]
                    builder.store(builder.call(fma, (left, right[v], builder.load(total))), total)
        builder.store(after(along, distance, count), way)
        builder.store(after(place, number(VECTOR_BYTES), count * NR_VECTORS), place_in_panel)

    middle = builder.sub(n, builder.srem(n, number(UNROLL)))
    with cgutils.for_range_slice(builder, number(0), middle, number(UNROLL), I64):
        add_products(UNROLL)
    with cgutils.for_range_slice(builder, middle, n, number(1), I64):
        add_products(1)
    with builder.if_then(add):
        for place, total in zip(places, sums, strict=True):
            builder.store(builder.fadd(builder.load(total), builder.load(place, align=size)), total)
    for place, total in zip(places, sums, strict=True):
        builder.store(builder.load(total), place, align=size)
    builder.ret_void()
    return function


def turns_a_line(size: int) -> int:
    """Turns of the loop in which a row's line of memory, 64 bytes, is read, for elements of `size` bytes."""
    return 64 // (UNROLL * size)


def number(n: int) -> Any:
    """A constant."""
    return ir.Constant(I64, n)


def element(builder: Any, view: Any, kind: Any, *index: Any) -> Any:
    """A pointer to view[index], as one to that kind."""
    place = builder.ptrtoint(view.data, index[0].type)
    for i, stride in zip(index, cgutils.unpack_tuple(builder, view.strides), strict=True):
        place = builder.add(place, builder.mul(i, stride))
    return builder.inttoptr(place, kind.as_pointer())


def opaque(builder: Any, place: Any) -> Any:
    """An address or a distance of which the compiler knows nothing.

    Or it makes each address of a tile from the one before, and the products wait for a chain of additions.
    """
    return builder.asm(ir.FunctionType(I64, [I64]), "", "=r,0", [place], False)


def fetch(builder: Any, place: Any, to_write: bool) -> None:
    """Have the line of a pointer brought into the second-level cache; any address will do."""
    flag = ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [ir.IntType(8).as_pointer(), flag, flag, flag])
    prefetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
    place = builder.bitcast(place, ir.IntType(8).as_pointer())
    builder.call(prefetch, [place, *(ir.Constant(flag, n) for n in (int(to_write), 2, 1))])
