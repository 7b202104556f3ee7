"""Dot products of a few rows with a group of rows of another matrix, which are read side by side."""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from tensorgrad.backend.numba.microkernel import AVX512, I64, VECTOR_BYTES, element, number, prefetch
from tensorgrad.backend.numba.reductions import fold

# For so many rows of x, how many rows of y are read at a time: the sums have to fit into the registers.
GROUP_SIZES = {1: 8, 2: 8, 4: 4} if AVX512 else {1: 8, 2: 4, 4: 2}


def group_size(rows: Any) -> int:
    """How many rows of y `dots` reads at a time for these rows of x."""
    return GROUP_SIZES[len(rows)]


def dots(x: Any, rows: Any, y: Any, first: int, prefetch_bytes: int) -> Any:
    """The dot products of x[i] and y[j] for all i in rows and for the group of j that starts at `first`.

    Rows of x (r, n) and y (m, n) are contiguous. If the group goes beyond the last row of y, that row is repeated.
    Memory `prefetch_bytes` ahead is prefetched meanwhile.
    """
    group = range(first, first + group_size(rows))
    return tuple((x[i] * y[min(j, len(y) - 1)]).sum() for i in rows for j in group)


def _constant(n: int) -> Any:
    return lambda rows: n


overload(group_size)(lambda rows: _constant(group_size(rows)))
overload(dots, jit_options={"forceinline": True})(
    lambda x, rows, y, first, prefetch_bytes: (
        lambda x, rows, y, first, prefetch_bytes: _dots(x, rows, y, first, prefetch_bytes)
    )
)


@intrinsic  # type: ignore[untyped-decorator]
def _dots(context: Any, x: Any, rows: Any, y: Any, first: Any, prefetch_bytes: Any) -> Any:
    """See `dots`: full vectors first, then the remaining elements one by one."""
    group = group_size(rows)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        x_view, y_view = (context.make_array(signature.args[i])(context, builder, arguments[i]) for i in (0, 2))
        rows, first, prefetch_bytes = cgutils.unpack_tuple(builder, arguments[1]), arguments[3], arguments[4]
        m, n = cgutils.unpack_tuple(builder, y_view.shape)
        scalar, last = y_view.data.type.pointee, builder.sub(m, number(1))
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
                addresses = [element(builder, y_view, vector, j, k) for j in columns]
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
    return result(x, rows, y, types.int64, types.int64), generate
