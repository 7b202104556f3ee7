"""The microkernel: MR rows of a times one packed panel of NR columns, with the MR x NR results in registers.

MR and NR follow from the number of vector registers: the results are two vectors wide, and as high as leaves registers
for the operands. All matrix products are made of it, those of attention and of linear layers (Goto and van de Geijn
2008, "Anatomy of High-Performance Matrix Multiplication"; Van Zee and van de Geijn 2015, "BLIS").
"""

import platform
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from tensorgrad.backend.numba.compile import has_instructions, inline, noinline
from tensorgrad.backend.numba.reductions import spread

AVX512, NEON = has_instructions("avx512f"), platform.machine().lower() in ("arm64", "aarch64")
# The results take 8 x 2 of 32 vector registers, 6 x 2 of 16, or, in pairs of NEON's registers of 16 bytes, 4 x 4 of 32.
MR = 8 if AVX512 else 4 if NEON else 6
NR_VECTORS = 2
VECTOR_BYTES = 64 if AVX512 else 32
I64 = ir.IntType(64)
UNROLL = 4  # iterations of the inner loop, so that counting and comparing cost less
NR = NR_VECTORS * VECTOR_BYTES // 4  # of float32
NR_FLOAT64 = NR // 2


def nr_of(x: Any) -> int:
    """NR for the dtype of x: the number of columns of a packed panel."""
    return NR if x.dtype == np.float32 else NR_FLOAT64


overload(nr_of)(
    lambda x: (lambda x: NR) if x.dtype == types.float32 else (lambda x: NR_FLOAT64)
)  # a constant for the compiler


@inline
def round_up(n: int, step: int) -> int:
    """n rounded up to a multiple of step."""
    return (n + step - 1) // step * step


def microkernel(
    a: Any, row: int, first: int, last: int, panels: Any, p: int, c: Any, c_row: int, c_column: int, add: bool
) -> None:
    """c[c_row : c_row + MR, c_column : c_column + nr] = a[row : row + MR, first:last] @ panels[p, first:last].

    With `add` the product is added to c. a (m, k) has contiguous rows or is in Fortran order, panels (n, k, nr) are
    packed, the rows of c are contiguous; all have one dtype.
    """
    product = a[row : row + MR, first:last] @ panels[p, first:last]
    c = c[c_row : c_row + MR, c_column : c_column + panels.shape[2]]
    c[...] = c + product if add else product


overload(microkernel, jit_options={"forceinline": True})(
    lambda a, row, first, last, panels, p, c, c_row, c_column, add: (
        lambda a, row, first, last, panels, p, c, c_row, c_column, add: _microkernel(
            a, row, first, last, panels, p, c, c_row, c_column, add
        )
    )
)


@noinline
def microkernel_transposed(a: Any, n: int, first: int, last: int, panels: Any, c: Any, c_row: int, add: bool) -> None:
    """c[c_row : c_row + n] = a[first:last, :n]^T @ panels[0, first:last], or += with `add`.

    n is rounded up to a multiple of MR: a has as many columns, and c as many rows.
    """
    transposed = a.T
    for d in range(0, n, MR):
        microkernel(transposed, d, first, last, panels, 0, c, c_row + d, 0, add)


@intrinsic  # type: ignore[untyped-decorator]
def _microkernel(
    context: Any, a: Any, row: Any, first: Any, last: Any, panels: Any, p: Any, c: Any, c_row: Any, c_column: Any,
    add: Any,
) -> Any:  # fmt: skip
    """See `microkernel`: computes addresses and calls `microkernel_function`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        a_view, panel_view, c_view = (
            context.make_array(signature.args[i])(context, builder, arguments[i]) for i in (0, 4, 6)
        )
        row, first, last, p, c_row, c_column, add = (arguments[i] for i in (1, 2, 3, 5, 7, 8, 9))
        scalar = c_view.data.type.pointee
        a_strides = cgutils.unpack_tuple(builder, a_view.strides)
        size = context.get_abi_sizeof(scalar)
        arguments = [
            element(builder, a_view, scalar, row, first),
            a_strides[0],
            a_strides[1] if a.layout == "F" else number(size),
            element(builder, panel_view, scalar, p, first, number(0)),
            element(builder, c_view, scalar, c_row, c_column),
            cgutils.unpack_tuple(builder, c_view.strides)[0],
            builder.sub(last, first),
            builder.trunc(add, ir.IntType(1)),
        ]
        integers = [builder.ptrtoint(x, I64) if isinstance(x.type, ir.PointerType) else x for x in arguments]
        builder.call(microkernel_function(builder.module, scalar, size, a.layout == "F"), integers)
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(a, i64, i64, i64, panels, i64, c, i64, i64, types.boolean), generate


def microkernel_function(module: Any, scalar: Any, size: int, transposed: bool) -> Any:
    """The microkernel as a function of the LLVM module: found there, or written instruction by instruction.

    In C it would be, with addresses as integers and strides in bytes:

        void microkernel(a, a_stride, step, panel, c, c_stride, n, add) {
            prefetch c[0..MR][0..NR];                            // it is needed when the sums are complete
            vector sums[MR][NR_VECTORS] = {0};                   // LLVM keeps each in a register
            for (k = 0; k < n; k++) {                            // UNROLL iterations at a time, then one by one
                vector right[NR_VECTORS] = row k of the panel;   // the panel is read from beginning to end
                for (i = 0; i < MR; i++) {                       // no loop in LLVM: MR times the instructions
                    vector left = a[i][k], in every lane;
                    for (v = 0; v < NR_VECTORS; v++)
                        sums[i][v] = fma(left, right[v], sums[i][v]);
                }
            }
            c[i][v] = add ? c[i][v] + sums[i][v] : sums[i][v];   // for all i and v
        }

    Rows of a are contiguous, `step` being the bytes of an element; or, if `transposed`, its columns are, and `step` is
    the distance between them.
    """
    kind = ir.FunctionType(ir.VoidType(), [I64] * 7 + [ir.IntType(1)])
    name = f"tensorgrad_microkernel_{size}_{int(transposed)}"
    if name in module.globals:
        return module.globals[name]
    function = ir.Function(module, kind, name)
    function.linkage = "linkonce_odr"
    function.attributes.add("noinline")
    builder = ir.IRBuilder(function.append_basic_block())
    a, a_stride, step, panel, c, c_stride, n, add = function.args
    vector = ir.VectorType(scalar, VECTOR_BYTES // size)
    # The function "fma" would be a call where the processor has no instruction for it; "fmuladd" is two instructions.
    fma = cgutils.get_or_insert_function(
        module, ir.FunctionType(vector, [vector] * 3), f"llvm.fmuladd.v{vector.count}f{size * 8}"
    )

    def after(start: Any, distance: Any, times: int) -> Any:
        return builder.add(start, builder.mul(distance, number(times)))

    def pointer(address: Any, kind: Any) -> Any:
        return builder.inttoptr(address, kind.as_pointer())

    def variable(value: Any) -> Any:
        result = cgutils.alloca_once(builder, value.type)
        builder.store(value, result)
        return result

    rows = range(MR)
    addresses = [
        pointer(after(after(c, c_stride, i), number(VECTOR_BYTES), v), vector) for i in rows for v in range(NR_VECTORS)
    ]  # fmt: skip
    for address in addresses:  # c is read and written when the sums are complete
        prefetch(builder, address, to_write=True)
    sums = [variable(ir.Constant(vector, None)) for _ in addresses]
    starts = [opaque(builder, after(a, a_stride, i)) for i in rows]
    distance_done, panel_row = variable(number(0)), variable(panel)  # bytes along the rows of a; an address

    def add_products(count: int) -> None:
        """Multiply the next `count` elements of every row of a by as many rows of the panel."""
        along, address = opaque(builder, builder.load(distance_done)), opaque(builder, builder.load(panel_row))
        distance = step if transposed else number(size)
        for k in range(count):
            rights = [after(address, number(VECTOR_BYTES), k * NR_VECTORS + v) for v in range(NR_VECTORS)]
            right = [builder.load(pointer(x, vector), align=size) for x in rights]
            if transposed:  # opaque: otherwise all loads move to the start of the iteration and spill registers
                column = opaque(builder, builder.add(a, after(along, step, k)))
                lefts = [after(column, number(size), i) for i in rows]
            else:
                lefts = [after(builder.add(starts[i], along), number(size), k) for i in rows]
            for i in rows:
                left = spread(builder, builder.load(pointer(lefts[i], scalar)), vector)
                for v in range(NR_VECTORS):
                    total = sums[i * NR_VECTORS + v]
                    builder.store(builder.call(fma, (left, right[v], builder.load(total))), total)
        builder.store(after(along, distance, count), distance_done)
        builder.store(after(address, number(VECTOR_BYTES), count * NR_VECTORS), panel_row)

    middle = builder.sub(n, builder.srem(n, number(UNROLL)))
    with cgutils.for_range_slice(builder, number(0), middle, number(UNROLL), I64):
        add_products(UNROLL)
    with cgutils.for_range_slice(builder, middle, n, number(1), I64):
        add_products(1)
    with builder.if_then(add):
        for address, total in zip(addresses, sums, strict=True):
            builder.store(builder.fadd(builder.load(total), builder.load(address, align=size)), total)
    for address, total in zip(addresses, sums, strict=True):
        builder.store(builder.load(total), address, align=size)
    builder.ret_void()
    return function


def number(n: int) -> Any:
    """A constant of type int64."""
    return ir.Constant(I64, n)


def element(builder: Any, view: Any, kind: Any, *index: Any) -> Any:
    """A pointer of type `kind` to view[index]."""
    address = builder.ptrtoint(view.data, index[0].type)
    for i, stride in zip(index, cgutils.unpack_tuple(builder, view.strides), strict=True):
        address = builder.add(address, builder.mul(i, stride))
    return builder.inttoptr(address, kind.as_pointer())


def opaque(builder: Any, address: Any) -> Any:
    """The same address or distance, but the compiler cannot see where it came from.

    Otherwise it computes each address from the previous one, and the products wait for a chain of additions.
    """
    return builder.asm(ir.FunctionType(I64, [I64]), "", "=r,0", [address], False)


def prefetch(builder: Any, address: Any, to_write: bool) -> None:
    """Prefetch the cache line of a pointer into the second-level cache; the address need not be valid."""
    flag = ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [ir.IntType(8).as_pointer(), flag, flag, flag])
    llvm_prefetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
    address = builder.bitcast(address, ir.IntType(8).as_pointer())
    builder.call(llvm_prefetch, [address, *(ir.Constant(flag, n) for n in (int(to_write), 2, 1))])
