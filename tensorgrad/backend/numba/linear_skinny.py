"""Skinny products: at most MAX_SKINNY_ROWS rows times a much larger weight matrix, as in generating text.

The general product (macrokernel.py) packs its right operand. For so few rows that would cost more than the product: all
weights would be read, written and read again. Here the weights are read once and in place, and nothing is packed.
"""

from typing import Any

from numba import types

from tensorgrad.backend.arrays import Array
from tensorgrad.backend.numba.dot_products import GROUP_SIZES, dots, group_size
from tensorgrad.backend.numba.microkernel import round_up
from tensorgrad.backend.numba.parallel import ALONE, prange
from tensorgrad.backend.numba.strided import Strided, array

MAX_SKINNY_ROWS = 4  # with more rows, computing takes longer than reading the weights
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


SKINNY_KERNELS = {n: Strided(skinny_product, _types(n)) for n in GROUP_SIZES}
