"""Blocks of quantised weights in registers: dot products with rows of x, and dequantising.

A function in Python says what is computed; the LLVM code of the same name stands for it in kernels.
"""

import functools
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from tensorgrad.backend import quantization
from tensorgrad.backend.numba.compile import has_instructions
from tensorgrad.backend.numba.microkernel import I64, VECTOR_BYTES, element, number, prefetch
from tensorgrad.backend.numba.reductions import fold, larger, spread
from tensorgrad.backend.quantization import BLOCK, FORMATS, LARGEST_Q8_0, QuantizedArray

LARGEST = 2**15 - 1  # the largest element of a block of x becomes this integer or minus this
SMALLEST = 2.0**-100  # a block of x whose elements are all smaller becomes 0: LARGEST divided by them may overflow
STEP_BLOCKS = 2  # that are multiplied by a single row of x at a time
PREFETCH_BYTES = 2**11  # ahead: the processor's own prefetchers stop at the end of a page
F16C = has_instructions("f16c")
LANES = VECTOR_BYTES // 4
Q8_0, Q4_0, Q4_1 = (FORMATS[name].n_bytes for name in ("q8_0", "q4_0", "q4_1"))
I8, I16, I32, F32 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.FloatType()
# Which weights of a packed block are side by side when it is unpacked: see `_integers`.
ORDER = [start + byte for first in (0, 1) for start in (0, 16) for byte in range(first, 16, 2)]


def round_block(x: Any, i: int, b: int, is_packed: bool, values: Any, scales: Any, sums: Any) -> None:
    """Round block b of x[i] to values[i] (n) int16, in ORDER if the weights are packed, with scales[i, b]: x = s v.

    sums[b, i] is the sum of the products. If an element of the block is not finite, sum and scale are NaN.
    """
    block = x[i, b * BLOCK : (b + 1) * BLOCK]
    top = abs(block).max()
    rounded = np.zeros(BLOCK) if top < SMALLEST else np.rint(block * (LARGEST / top))
    values[i, b * BLOCK : (b + 1) * BLOCK] = rounded[ORDER] if is_packed else rounded
    scales[i, b] = (0 if top < SMALLEST else top / LARGEST) + (block * 0).sum()
    sums[b, i] = scales[i, b] * rounded.sum()


def dots(values: Any, scales: Any, sums: Any, top: int, rows: Any, blocks: Any, j: int) -> Any:
    """The products of row j of the weights with rows of x, which `round_block` has rounded: as many as `rows` has, from
    `top` on. blocks: the weights (m, bytes of a row).
    """
    n_blocks, is_packed = len(sums), blocks.shape[1] // len(sums) != Q8_0
    weights = np.empty(n_blocks * BLOCK, np.float32)
    dequantize_row(blocks.reshape(len(blocks), n_blocks, -1), j, 0, n_blocks, weights)
    weights = weights.reshape(n_blocks, BLOCK)[:, ORDER if is_packed else slice(None)].reshape(-1)
    return tuple([(values[i] * np.repeat(scales[i], BLOCK)) @ weights for i in range(top, top + len(rows))])


def dequantize_row(blocks: Any, j: int, first: int, last: int, y: Any) -> None:
    """y = blocks first to last of row j of the weights, blocks (m, n / 32, bytes of a block), as float32."""
    (type,) = (name for name, f in FORMATS.items() if f.n_bytes == blocks.shape[2])
    row = QuantizedArray(type, (1, (last - first) * BLOCK), blocks[j, first:last].reshape(1, -1))
    y[: row.size] = row.dequantize()[0]


def scales_q8_0(x: Any, b: int, scales: Any) -> None:
    """scales[:] = the scales to choose from for block b of x (blocks, 32)."""
    scales[:] = quantization.scales_q8_0(x[b : b + 1])[0]


def squared_error(x: Any, b: int, d: Any) -> Any:
    """The sum of the squared errors of block b of x (blocks, 32) in q8_0 with the scale d."""
    return quantization.squared_error(x[b], d)


overload(scales_q8_0, jit_options={"forceinline": True})(
    lambda x, b, scales: lambda x, b, scales: _scales_q8_0(x, b, scales)
)
overload(squared_error, jit_options={"forceinline": True})(lambda x, b, d: lambda x, b, d: _squared_error(x, b, d))
overload(round_block, jit_options={"forceinline": True})(
    lambda x, i, b, is_packed, values, scales, sums: (
        lambda x, i, b, is_packed, values, scales, sums: _round_block(x, i, b, is_packed, values, scales, sums)
    )
)


@overload(dots, jit_options={"forceinline": True})  # type: ignore[untyped-decorator]
def _dots(values: Any, scales: Any, sums: Any, top: Any, rows: Any, blocks: Any, j: Any) -> Any:
    q8_0, q4_0, q4_1 = (_dots_of(n_bytes) for n_bytes in (Q8_0, Q4_0, Q4_1))

    def choose(values: Any, scales: Any, sums: Any, top: Any, rows: Any, blocks: Any, j: Any) -> Any:
        n_bytes = blocks.shape[1] // len(sums)
        if n_bytes == Q8_0:
            return q8_0(values, scales, sums, top, rows, blocks, j)
        if n_bytes == Q4_0:
            return q4_0(values, scales, sums, top, rows, blocks, j)
        return q4_1(values, scales, sums, top, rows, blocks, j)

    return choose


def _vector(kind: Any, count: int = BLOCK) -> Any:
    return ir.VectorType(kind, count)


def _load(builder: Any, address: Any, offset: int, kind: Any, align: int = 1) -> Any:
    """What is at an address, an integer, plus an offset in bytes."""
    pointer = builder.inttoptr(builder.add(address, number(offset)), kind.as_pointer())
    return builder.load(pointer, align=align)


def _function(builder: Any, name: str, kind: Any, n: int) -> Any:
    """LLVM's function of that name for n operands of one type, a vector of float32 or a number."""
    suffix = f"v{kind.count}f32" if isinstance(kind, ir.VectorType) else "f32"
    return cgutils.get_or_insert_function(builder.module, ir.FunctionType(kind, [kind] * n), f"llvm.{name}.{suffix}")


@intrinsic  # type: ignore[untyped-decorator]
def _round_block(
    context: Any, x: Any, i: Any, b: Any, is_packed: Any, values: Any, scales: Any, sums: Any
) -> Any:
    """See `round_block`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        view, values, scales, sums = (
            context.make_array(signature.args[n])(context, builder, arguments[n]) for n in (0, 4, 5, 6)
        )
        i, b, is_packed = arguments[1:4]
        column, floats = builder.mul(b, number(BLOCK)), _vector(F32)
        block = builder.load(element(builder, view, floats, i, column), align=4)
        magnitudes = builder.call(_function(builder, "fabs", floats, 1), [block])
        top = fold(builder, magnitudes, functools.partial(larger, builder))
        is_zero = builder.fcmp_ordered("<", top, F32(SMALLEST))
        factor = builder.select(is_zero, F32(0.0), builder.fdiv(F32(float(LARGEST)), top))
        scale = builder.select(is_zero, F32(0.0), builder.fdiv(top, F32(float(LARGEST))))
        scale = builder.fadd(scale, fold(builder, builder.fmul(block, floats([0.0] * BLOCK)), builder.fadd))
        scaled = builder.fmul(block, spread(builder, factor, floats))
        rounded = builder.fptosi(builder.call(_function(builder, "rint", floats, 1), [scaled]), _vector(I32))
        integers = builder.trunc(rounded, _vector(I16))
        packed = builder.shuffle_vector(integers, integers, _vector(I32)(ORDER))
        integers = builder.select(builder.trunc(is_packed, ir.IntType(1)), packed, integers)
        builder.store(integers, element(builder, values, _vector(I16), i, column), align=2)
        builder.store(scale, element(builder, scales, F32, i, b))
        total = builder.sitofp(fold(builder, rounded, builder.add), F32)
        builder.store(builder.fmul(total, scale), element(builder, sums, F32, b, i))
        return context.get_dummy_value()

    return types.void(x, types.int64, types.int64, types.boolean, values, scales, sums), generate


@intrinsic  # type: ignore[untyped-decorator]
def _scales_q8_0(context: Any, x: Any, b: Any, scales: Any) -> Any:
    """See `scales_q8_0`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        view, scales = (context.make_array(signature.args[n])(context, builder, arguments[n]) for n in (0, 2))
        block = builder.load(element(builder, view, _vector(F32), arguments[1], number(0)), align=4)
        magnitudes = builder.call(_function(builder, "fabs", block.type, 1), [block])
        top, floats = fold(builder, magnitudes, functools.partial(larger, builder)), _vector(F32, LARGEST_Q8_0.size)
        d = builder.fdiv(spread(builder, top, floats), floats(LARGEST_Q8_0.tolist()))
        builder.store(_to_half(builder, d), element(builder, scales, floats, number(0)), align=4)
        return context.get_dummy_value()

    return types.void(x, types.int64, scales), generate


def _to_half(builder: Any, vector: Any) -> Any:
    """A vector of float32 that are not negative, each rounded to a float16, as float32.

    13 bits are dropped. Below the smallest normal float16 it has the multiples of 2^-24, as float32 has near 0.5.
    """
    floats, bits = vector.type, _vector(I32, vector.type.count)
    half, integers = floats([0.5] * floats.count), builder.bitcast(vector, bits)
    is_odd = builder.and_(builder.lshr(integers, bits([13] * bits.count)), bits([1] * bits.count))
    integers = builder.add(builder.add(integers, bits([0xFFF] * bits.count)), is_odd)
    normal = builder.bitcast(builder.and_(integers, bits([0xFFFFE000] * bits.count)), floats)
    small = builder.fsub(builder.fadd(vector, half), half)
    result = builder.select(builder.fcmp_ordered("<", vector, floats([2.0**-14] * floats.count)), small, normal)
    is_large = builder.fcmp_ordered(">", normal, floats([65504.0] * floats.count))
    return builder.select(is_large, floats([float("inf")] * floats.count), result)


@intrinsic  # type: ignore[untyped-decorator]
def _squared_error(context: Any, x: Any, b: Any, d: Any) -> Any:
    """See `squared_error`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        view, floats = context.make_array(signature.args[0])(context, builder, arguments[0]), _vector(F32)
        d = arguments[2]
        block = builder.load(element(builder, view, floats, arguments[1], number(0)), align=4)
        inverse = builder.select(builder.fcmp_ordered("==", d, F32(0.0)), F32(0.0), builder.fdiv(F32(1.0), d))
        scaled = builder.fmul(block, spread(builder, inverse, floats))
        integers = builder.call(_function(builder, "rint", floats, 1), [scaled])
        for within, limit in (("<", floats([127.0] * BLOCK)), (">", floats([-127.0] * BLOCK))):
            integers = builder.select(builder.fcmp_ordered(within, integers, limit), integers, limit)
        error = builder.fsub(block, builder.fmul(spread(builder, d, floats), integers))
        return fold(builder, builder.fmul(error, error), builder.fadd)

    return types.float32(x, types.int64, types.float32), generate


def _dots_of(n_bytes: int) -> Any:
    """`dots` for the format whose blocks have so many bytes."""

    @intrinsic  # type: ignore[untyped-decorator]
    def dots(context: Any, values: Any, scales: Any, sums: Any, top: Any, rows: Any, blocks: Any, j: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            values, scales, sums, blocks = (
                context.make_array(signature.args[n])(context, builder, arguments[n]) for n in (0, 1, 2, 5)
            )
            weights = builder.ptrtoint(element(builder, blocks, I8, arguments[6], number(0)), I64)
            results = _row_dots(builder, n_bytes, weights, arguments[3], len(rows), values, scales, sums)
            return context.make_tuple(builder, signature.return_type, results)

        i64 = types.int64
        return types.UniTuple(types.float32, len(rows))(values, scales, sums, i64, rows, blocks, i64), generate

    return dots


def _row_dots(
    builder: Any, n_bytes: int, weights: Any, top: Any, n_rows: int, values: Any, scales: Any, sums: Any
) -> list[Any]:
    """See `dots`; weights: the address of the row of the weights.

    For each block of weights d q + m, the sum of products of q and the integers of x, times d and the scale of x, is
    added to a vector of partial sums; and m times the sum of x to another sum. For a single row of x, the scales of two
    blocks are converted at a time. The order of the additions is always the same.
    """
    n_blocks, start = cgutils.unpack_tuple(builder, sums.shape)[0], number(0)
    floats, several = _vector(F32, LANES), _vector(F32, n_rows)
    totals = [cgutils.alloca_once(builder, floats) for _ in range(n_rows)]
    minima = cgutils.alloca_once(builder, several)
    for total in (minima, *totals):
        builder.store(ir.Constant(total.type.pointee, None), total)
    for count in (STEP_BLOCKS, 1) if n_rows == 1 else (1,):
        stop = builder.sub(n_blocks, builder.urem(n_blocks, number(count)))
        with cgutils.for_range_slice(builder, start, stop, number(count), I64) as (b, _):
            address = builder.add(weights, builder.mul(b, number(n_bytes)))
            for line in range(0, count * n_bytes, 64):
                ahead = builder.add(address, number(PREFETCH_BYTES + line))
                prefetch(builder, builder.inttoptr(ahead, I8.as_pointer()), to_write=False)
            d, m = _scales(builder, n_bytes, address, count)
            integers = [_integers(builder, n_bytes, address, n_bytes * u) for u in range(count)]
            for i, total in enumerate(totals):
                row = builder.add(top, number(i))
                scale = builder.fmul(d, builder.load(element(builder, scales, d.type, row, b), align=4))
                for u in range(count):
                    column = builder.mul(builder.add(b, number(u)), number(BLOCK))
                    x = builder.load(element(builder, values, _vector(I16), row, column), align=2)
                    product = builder.sitofp(_sum_of_products(builder, integers[u], x), floats)
                    _add_product(builder, product, _spread(builder, scale, u, floats), total)
            for u in range(count if m is not None else 0):
                sum_of_x = builder.load(element(builder, sums, several, builder.add(b, number(u)), top), align=4)
                _add_product(builder, _spread(builder, m, u, several), sum_of_x, minima)
        start = stop
    minima, totals = builder.load(minima), [fold(builder, builder.load(total), builder.fadd) for total in totals]
    return [builder.fadd(total, builder.extract_element(minima, number(i))) for i, total in enumerate(totals)]


def _spread(builder: Any, vector: Any, i: int, kind: Any) -> Any:
    """A vector with element i of another in every element."""
    return builder.shuffle_vector(vector, vector, _vector(I32, kind.count)([i] * kind.count))


def _scales(builder: Any, n_bytes: int, address: Any, count: int) -> tuple[Any, Any]:
    """d and m of blocks one after another, as vectors: a weight is d q + m, where q are the `_integers`.

    m is None in the format where it is 0.
    """

    def read(offset: int) -> Any:
        return _to_float(builder, [_load(builder, address, n_bytes * u + offset, I16) for u in range(count)])

    d = read(0)
    if n_bytes == Q8_0:
        return d, None
    return d, read(2) if n_bytes == Q4_1 else builder.fmul(d, d.type([-8.0] * count))


def _add_product(builder: Any, a: Any, b: Any, total: Any) -> None:
    """total += a b, with one rounding where the processor has an instruction for it."""
    builder.store(builder.call(_function(builder, "fmuladd", a.type, 3), [a, b, builder.load(total)]), total)


def _to_float(builder: Any, halves: list[Any]) -> Any:
    """The numbers of float16 whose bits are given, as a vector of float32.

    They are joined to an integer first: loaded into a vector register one by one, each would wait for what it held.
    """
    count, width = len(halves), max(2, len(halves))
    kind = ir.IntType(16 * width)
    joined = builder.zext(halves[0], kind)
    for i, half in enumerate(halves[1:], 1):
        joined = builder.or_(joined, builder.shl(builder.zext(half, kind), kind(16 * i)))
    joined = builder.asm(ir.FunctionType(kind, [kind]), "", "=r,0", [joined], False)
    floats, bits = _vector(F32, width), _vector(I32, width)
    if F16C:
        result = builder.fpext(builder.bitcast(joined, _vector(ir.HalfType(), width)), floats)
    else:
        wide = builder.zext(builder.bitcast(joined, _vector(I16, width)), bits)
        magnitude = builder.shl(builder.and_(wide, bits([0x7FFF] * width)), bits([13] * width))
        scaled = builder.fmul(builder.bitcast(magnitude, floats), floats([2.0**112] * width))  # the biases differ
        is_finite = builder.icmp_unsigned("<", magnitude, bits([0x7C00 << 13] * width))
        not_finite = builder.or_(magnitude, bits([0x7F800000] * width))
        magnitude = builder.select(is_finite, builder.bitcast(scaled, bits), not_finite)
        sign = builder.shl(builder.and_(wide, bits([0x8000] * width)), bits([16] * width))
        result = builder.bitcast(builder.or_(magnitude, sign), floats)
    return builder.shuffle_vector(result, result, _vector(I32, count)(list(range(count))))


def _integers(builder: Any, n_bytes: int, address: Any, offset: int) -> Any:
    """The 32 integers of a block of weights as int16; those of 4 bits in ORDER, between 0 and 15.

    A word of 32 bits has eight of them. Shifted by 0, 4, 8 or 12 bits, it has two at the ends of its two halves.
    """
    if n_bytes == Q8_0:
        return builder.sext(_load(builder, address, offset + 2, _vector(I8)), _vector(I16))
    words, twice = _load(builder, address, offset + n_bytes - 16, _vector(I32, 4)), _vector(I32, 8)
    words = builder.shuffle_vector(words, words, twice([0, 1, 2, 3] * 2))
    pairs = []
    for shift in (0, 8):
        shifted = builder.lshr(words, twice([shift] * 4 + [shift + 4] * 4))
        pairs.append(builder.bitcast(builder.and_(shifted, twice([0x000F000F] * 8)), _vector(I16, 16)))
    return builder.shuffle_vector(*pairs, _vector(I32)(list(range(BLOCK))))


def _sum_of_products(builder: Any, a: Any, b: Any) -> Any:
    """LANES partial sums of the products of two vectors of int16, in a form that LLVM takes for VPMADDWD."""
    products = builder.mul(builder.sext(a, _vector(I32)), builder.sext(b, _vector(I32)))
    half = _vector(I32, BLOCK // 2)
    even, odd = (
        builder.shuffle_vector(products, products, half(list(range(first, BLOCK, 2)))) for first in (0, 1)
    )
    return fold(builder, builder.add(even, odd), builder.add, LANES)


@overload(dequantize_row, jit_options={"forceinline": True})  # type: ignore[untyped-decorator]
def _dequantize_row(blocks: Any, j: Any, first: Any, last: Any, y: Any) -> Any:
    q8_0, q4_0, q4_1 = (_dequantize_of(n_bytes) for n_bytes in (Q8_0, Q4_0, Q4_1))

    def choose(blocks: Any, j: Any, first: Any, last: Any, y: Any) -> Any:
        if blocks.shape[2] == Q8_0:
            q8_0(blocks, j, first, last, y)
        elif blocks.shape[2] == Q4_0:
            q4_0(blocks, j, first, last, y)
        else:
            q4_1(blocks, j, first, last, y)

    return choose


def _dequantize_of(n_bytes: int) -> Any:
    """`dequantize_row` for the format whose blocks have so many bytes."""

    @intrinsic  # type: ignore[untyped-decorator]
    def dequantize(context: Any, blocks: Any, j: Any, first: Any, last: Any, y: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            view, y = (context.make_array(signature.args[n])(context, builder, arguments[n]) for n in (0, 4))
            j, first, last = arguments[1:4]
            floats = _vector(F32)
            with cgutils.for_range_slice(builder, first, last, number(1), I64) as (b, _):
                address = builder.ptrtoint(element(builder, view, I8, j, b, number(0)), I64)
                integers, (d, m) = _integers(builder, n_bytes, address, 0), _scales(builder, n_bytes, address, 1)
                if n_bytes != Q8_0:
                    natural = _vector(I32)([ORDER.index(i) for i in range(BLOCK)])
                    integers = builder.shuffle_vector(integers, integers, natural)
                if n_bytes == Q4_0:  # d q - 8 d would be NaN where d is infinite
                    integers, m = builder.sub(integers, integers.type([8] * BLOCK)), None
                weights = builder.fmul(builder.sitofp(integers, floats), _spread(builder, d, 0, floats))
                weights = weights if m is None else builder.fadd(weights, _spread(builder, m, 0, floats))
                place = element(builder, y, floats, builder.mul(builder.sub(b, first), number(BLOCK)))
                builder.store(weights, place, align=4)
            return context.get_dummy_value()

        return types.void(blocks, types.int64, types.int64, types.int64, y), generate

    return dequantize
