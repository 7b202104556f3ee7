"""Skinny products: at most MAX_SKINNY_ROWS rows times a much larger weight matrix, as in generating text.

The general product (macrokernel.py) packs its right operand. For so few rows that would cost more than the product: all
weights would be read, written and read again. Here the weights are read once and in place, and nothing is packed.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from tensorgrad.backend.arrays import Array
from tensorgrad.backend.numba.microkernel import AVX512, I64, VECTOR_BYTES, element, number, prefetch, round_up
from tensorgrad.backend.numba.parallel import ALONE, prange
from tensorgrad.backend.numba.reductions import fold
from tensorgrad.backend.numba.strided import Strided, array

MAX_SKINNY_ROWS = 4  # with more rows, computing takes longer than reading the weights
# For so many rows of x, how many rows of the weights are read at a time: the sums have to fit into the registers.
WEIGHT_ROWS = {1: 8, 2: 8, 4: 4} if AVX512 else {1: 8, 2: 4, 4: 2}
# For so many rows of x, their indices, with the last repeated to a number of rows that a kernel is compiled for.
ROWS_READ = {1: (0,), 2: (0, 1), 3: (0, 1, 2, 2), 4: (0, 1, 2, 3)}
# The next group of rows is prefetched if it begins within so many bytes: further away, it may leave the second-level
# cache before it is used. Otherwise the same rows are prefetched, so many bytes ahead.
MAX_GROUP_PREFETCH_BYTES = 2**18
ROW_PREFETCH_BYTES = 2**12


def reads_in_place(x: Array, weight: Array) -> bool:
    """Whether `skinny_linear` supports x (r, n) and weight (m, n)."""
    return len(x) <= MAX_SKINNY_ROWS and x.flags.carray and weight.flags.carray


def skinny_linear(x: Array, weight: Array, bias: Array, y: Array, threads: int) -> None:
    """y (r, m) = x (r, n) @ weight (m, n)^T, plus bias (m) unless it is empty; all in C order.

    Any number of threads gives the same bits, and a row of y has the same bits whatever the other rows are.
    """
    rows = ROWS_READ[len(x)]
    SKINNY_KERNELS[len(rows)](x, weight, bias, y, rows, threads)


def group_size(rows: Any) -> int:
    """How many rows of the weights are read at a time for these rows of x."""
    return WEIGHT_ROWS[len(rows)]


def dots(x: Any, rows: Any, weight: Any, first: int, prefetch_bytes: int) -> Any:
    """The dot products of x[i] and weight[j] for all i in rows and for the group of j that starts at `first`.

    x (r, n) and weight (m, n) are in C order. If the group goes beyond the last row of weight, that row is repeated.
    Memory `prefetch_bytes` ahead is prefetched meanwhile.
    """
    group = range(first, first + group_size(rows))
    return tuple((x[i] * weight[min(j, len(weight) - 1)]).sum() for i in rows for j in group)


def skinny_product(x: Any, weight: Any, bias: Any, y: Any, rows: Any, parts: int, thread: Any = ALONE) -> None:
    """See `skinny_linear`. rows: the indices of the rows of x, the last repeated to a number that is compiled for.

    A core that reads one row after the other waits for memory. So it reads a group of rows side by side, which the
    processor's own prefetcher recognises as several streams, and prefetches the next group meanwhile.
    """
    group, last = group_size(rows), len(weight) - 1
    n_groups = round_up(len(weight), group) // group
    group_bytes = group * weight.strides[0]
    prefetch_bytes = group_bytes if group_bytes <= MAX_GROUP_PREFETCH_BYTES else ROW_PREFETCH_BYTES
    for part in prange(parts, thread):
        for g in range(n_groups * part // parts, n_groups * (part + 1) // parts):
            sums = dots(x, rows, weight, g * group, prefetch_bytes)
            for i in range(len(rows)):
                for j in range(group):
                    column = min(g * group + j, last)
                    y[rows[i], column] = sums[i * group + j]
                    if bias.size > 0:
                        y[rows[i], column] += bias[column]


def _types(n_rows: int) -> Any:
    return lambda real: (
        array(real, 2, "C"), array(real, 2, "C"), array(real, 1), array(real, 2, "C"),
        types.UniTuple(types.int64, n_rows), types.int64,
    )  # fmt: skip


SKINNY_KERNELS = {n: Strided(skinny_product, _types(n)) for n in WEIGHT_ROWS}


def _constant(n: int) -> Any:
    return lambda rows: n


overload(group_size)(lambda rows: _constant(group_size(rows)))
overload(dots, jit_options={"forceinline": True})(
    lambda x, rows, weight, first, prefetch_bytes: (
        lambda x, rows, weight, first, prefetch_bytes: _dots(x, rows, weight, first, prefetch_bytes)
    )
)


@intrinsic  # type: ignore[untyped-decorator]
def _dots(context: Any, x: Any, rows: Any, weight: Any, first: Any, prefetch_bytes: Any) -> Any:
    """See `dots`: full vectors first, then the remaining elements one by one."""
    group = group_size(rows)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        x_view, view = (context.make_array(signature.args[i])(context, builder, arguments[i]) for i in (0, 2))
        rows, first, prefetch_bytes = cgutils.unpack_tuple(builder, arguments[1]), arguments[3], arguments[4]
        m, n = cgutils.unpack_tuple(builder, view.shape)
        scalar, last = view.data.type.pointee, builder.sub(m, number(1))
        size = context.get_abi_sizeof(scalar)
        columns = [builder.add(first, number(j)) for j in range(group)]
        columns = [builder.select(builder.icmp_signed("<", j, last), j, last) for j in columns]
        results, start = [ir.Constant(scalar, 0.0)] * (len(rows) * group), number(0)
        for width in (VECTOR_BYTES // size, 1):
            vector = ir.VectorType(scalar, width)
            kind = ir.FunctionType(vector, [vector] * 3)
            fma = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fmuladd.v{width}f{size * 8}")
            stop = builder.sub(n, builder.urem(n, number(width)))
            sums = [cgutils.alloca_once(builder, vector) for _ in results]
            for total in sums:
                builder.store(ir.Constant(vector, None), total)
            with cgutils.for_range_slice(builder, start, stop, number(width), I64) as (k, _):
                addresses = [element(builder, view, vector, j, k) for j in columns]
                for address in addresses if width > 1 else ():
                    ahead = builder.add(builder.ptrtoint(address, I64), prefetch_bytes)
                    prefetch(builder, builder.inttoptr(ahead, address.type), to_write=False)
                right = [builder.load(address, align=size) for address in addresses]
                for i, row in enumerate(rows):
                    left = builder.load(element(builder, x_view, vector, row, k), align=size)
                    for j, total in enumerate(sums[i * group : (i + 1) * group]):
                        builder.store(builder.call(fma, (left, right[j], builder.load(total))), total)
            joined = [fold(builder, builder.load(total), builder.fadd) for total in sums]
            results = [builder.fadd(a, b) for a, b in zip(results, joined, strict=True)]
            start = stop
        return context.make_tuple(builder, signature.return_type, results)

    result = types.UniTuple(x.dtype, len(rows) * group)
    return result(x, rows, weight, types.int64, types.int64), generate
