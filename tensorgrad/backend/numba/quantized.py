"""Products with quantised weights, which are read in place and never dequantised.

In generating text, reading the weights takes the time. So the sums have to keep up with the memory: they are sums of
products of integers. Each block of 32 elements of x is rounded to int16 with a scale of its own, and the product of two
blocks is an integer, without further rounding. The int8 of llama.cpp would be no faster where there is no instruction
for products of bytes: x86 multiplies pairs of int16 and adds each pair (VPMADDWD). And with int16 the results are as
good as those of float32.
"""

from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from tensorgrad.backend.arrays import Array
from tensorgrad.backend.numba import NumbaBackend
from tensorgrad.backend.numba.arrays import contiguous, flat
from tensorgrad.backend.numba.compile import inline, noinline
from tensorgrad.backend.numba.decoder import DECODE_BLOCKS, operand, products, signature
from tensorgrad.backend.numba.macrokernel import gemm, pack_block
from tensorgrad.backend.numba.microkernel import nr_of, round_up
from tensorgrad.backend.numba.pack import ROW_PADDING, aligned, pack_transposed
from tensorgrad.backend.numba.parallel import ALONE, kernel, prange
from tensorgrad.backend.numba.quantized_blocks import dequantize_row, dots, round_block, scales_q8_0, squared_error
from tensorgrad.backend.numba.strided import Strided, array
from tensorgrad.backend.quantization import BLOCK, FORMATS, LARGEST_Q8_0, BlockFormat, QuantizedArray, QuantizedMath
from tensorgrad.backend.runtime import Backend

# For so many rows of x, those that are multiplied by a row of the weights at a time; eight for more than eight.
ROWS_AT_A_TIME = {n: tuple(range(1 if n == 1 else 4 if n <= 4 else 8)) for n in range(1, 9)}
MAX_ROWS = 24  # of x: for more, dequantising the weights costs less than it saves
BAND_ROWS = 32  # of the weights, which stay in the first-level cache while all rows of x pass by
FLOAT32 = np.dtype(np.float32)
BLOCKS = types.Array(types.uint8, 2, "C", readonly=True)


def product(x: Any, blocks: Any, bias: Any, y: Any, rows: Any, parts: int, thread: Any = ALONE) -> None:
    """y (r, m) = x (r, n) @ weights (m, n)^T, plus bias (m) unless it is empty; all in C order.

    rows: as many as are multiplied at a time. Every thread has its own part of the weights.
    """
    (n_rows, n), m, n_blocks = x.shape, len(blocks), x.shape[1] // BLOCK
    padded = round_up(n_rows, len(rows))
    for part in prange(parts, thread):
        values, scales = np.empty((padded, n), np.int16), np.empty((padded, n_blocks), np.float32)
        sums = np.empty((n_blocks, padded), np.float32)
        scales[n_rows:], sums[:, n_rows:] = 0, 0  # the rows that fill up a group: see `padded_matrix`
        for i in range(n_rows):
            for b in range(n_blocks):
                round_block(x, i, b, blocks.shape[1] < n, values, scales, sums)
        first, last = m * part // parts, m * (part + 1) // parts
        for band in range(first, last, BAND_ROWS):
            for top in range(0, n_rows, len(rows)):
                for j in range(band, min(band + BAND_ROWS, last)):
                    results = dots(values, scales, sums, top, rows, blocks, j)
                    for i in range(min(len(rows), n_rows - top)):
                        y[top + i, j] = results[i] + bias[j] if bias.size > 0 else results[i]


# --- many rows: the macrokernel, which packs panels of dequantised weights ------------------------


@noinline
def pack_dequantized(blocks: Any, first: int, last: int, left: int, right: int, panels: Any) -> None:
    """See `pack_panels`: it packs elements first to last, multiples of 32, of rows left to right of the weights."""
    n, nr = last - first, panels.shape[2]
    rows = aligned(nr * (n + ROW_PADDING), panels).reshape(nr, n + ROW_PADDING)
    for p in range((right - left + nr - 1) // nr):
        for lane in range(nr):
            j = left + p * nr + lane
            if j < right:
                dequantize_row(blocks, j, first // BLOCK, last // BLOCK, rows[lane])
            else:
                rows[lane] = 0
        pack_transposed(rows[:, :n].T, panels[p])


def dequantizing_product(x: Any, blocks: Any, bias: Any, y: Any, parts: int, thread: Any = ALONE) -> None:
    """The same as `product`. Every thread has its own part of the weights here, too."""
    m, nr, n_blocks = len(blocks), nr_of(y), x.shape[1] // BLOCK
    n_panels, b = round_up(m, nr) // nr, blocks.reshape(m, n_blocks, blocks.shape[1] // n_blocks)
    for part in prange(parts, thread):
        first, last = n_panels * part // parts * nr, min(n_panels * (part + 1) // parts * nr, m)
        gemm(x, b[first:last], y[:, first:last], bias[first:last], False)


@noinline
def dequantize_rows(blocks: Any, indices: Any, y: Any) -> None:
    """y (k, n) = the rows `indices` (k) of the weights."""
    n_blocks = y.shape[1] // BLOCK
    b = blocks.reshape(len(blocks), n_blocks, blocks.shape[1] // n_blocks)
    for i in range(indices.size):
        dequantize_row(b, indices[i], 0, n_blocks, y[i])


overload(pack_block)(
    lambda b, first, last, left, right, panels: (
        (lambda b, first, last, left, right, panels: pack_dequantized(b, first, last, left, right, panels))
        if b.dtype == types.uint8
        else None
    )
)


# --- quantising -----------------------------------------------------------------------------------


@kernel
def quantize_q8_0(x: Any, d: Any, q: Any, thread: Any = ALONE) -> None:
    """d (blocks) and q (blocks, 32) int8 from x (blocks, 32): see `_quantize_q8_0`."""
    scales = np.empty(LARGEST_Q8_0.size, np.float32)
    for b in prange(len(x), thread):
        scales_q8_0(x, b, scales)
        d[b], least = scales[0], np.float32(np.inf)
        for scale in scales:
            error = squared_error(x, b, scale)
            if error < least:
                d[b], least = scale, error
            if least == 0:
                break
        inverse = np.float32(0) if d[b] == 0 else np.float32(1) / d[b]
        for i in range(BLOCK):
            q[b, i] = np.int8(min(max(np.rint(x[b, i] * inverse), np.float32(-127)), np.float32(127)))


# --- a token through a block: see decoder.py -------------------------------------------------------


def rounded_row(x: Any, blocks: Any) -> Any:
    """X (n) as `dots` reads it: its values, scales and sums."""
    n_blocks = x.size // BLOCK
    values, scales = np.empty((1, x.size), np.int16), np.empty((1, n_blocks), np.float32)
    sums, row = np.empty((n_blocks, 1), np.float32), x.reshape(1, -1)
    for b in range(n_blocks):
        round_block(row, 0, b, blocks.shape[1] < x.size, values, scales, sums)
    return values, scales, sums


def row_products(x: Any, blocks: Any, y: Any, first: int, last: int) -> None:
    """y[first:last] = those rows of the weights @ x, for an x from `rounded_row`."""
    values, scales, sums = x
    for j in range(first, last):
        y[j] = dots(values, scales, sums, 0, (0,), blocks, j)[0]


_rounded_row, _row_products = inline(rounded_row), inline(row_products)
overload(operand)(
    lambda x, weight: (lambda x, weight: _rounded_row(x, weight)) if weight.dtype == types.uint8 else None
)
overload(products)(
    lambda x, weight, y, first, last: (
        (lambda x, weight, y, first, last: _row_products(x, weight, y, first, last))
        if weight.dtype == types.uint8
        else None
    )
)


def _types(*more: Any) -> Any:
    """The types of x, blocks, bias and y, then others."""
    return lambda real: (array(real, 2, "C"), BLOCKS, array(real, 1, "C"), array(real, 2, "C"), *more, types.int64)


PRODUCTS = {n: Strided(product, _types(types.UniTuple(types.int64, n))) for n in map(len, ROWS_AT_A_TIME.values())}
DEQUANTIZING_PRODUCT = Strided(dequantizing_product, _types())
QUANTIZED_DECODE_BLOCKS = Strided(DECODE_BLOCKS.py_func, signature(lambda real: BLOCKS))
NO_BIAS = np.empty(0, np.float32)


class QuantizedNumba(QuantizedMath, NumbaBackend):
    """The kernels above for float32, and those of NumbaBackend for the rest of an op with a quantised operand."""

    def quantize(self, dtype: BlockFormat, x: Array) -> tuple[Array, ...]:
        """The scales and the integers of blocks x (blocks, 32); on all threads for q8_0, which tries many scales."""
        if dtype.name != "q8_0":
            return super().quantize(dtype, x)
        d, q = np.empty((len(x), 1), FLOAT32), np.empty(x.shape, np.int8)
        quantize_q8_0(x, d[:, 0], q)
        return d, q.view(np.uint8)

    def linear(self, x: Array, weight: Any, bias: Array | None) -> Array:
        """x (..., n) @ weight (m, n)^T + bias (m) -> (..., m)."""
        floats = (x,) if bias is None else (x, bias)
        if type(weight) is not QuantizedArray or not x.size or any(a.dtype != FLOAT32 for a in floats):
            return super().linear(x, weight, bias)
        m, n = weight.shape
        y = np.empty((*x.shape[:-1], m), FLOAT32)
        rows = contiguous(x).reshape(-1, n)
        arrays = rows, weight.blocks, NO_BIAS if bias is None else contiguous(bias), y.reshape(-1, m)
        if len(rows) > MAX_ROWS:
            DEQUANTIZING_PRODUCT(*arrays, self.threads)
        else:
            at_a_time = ROWS_AT_A_TIME.get(len(rows), ROWS_AT_A_TIME[8])
            PRODUCTS[len(at_a_time)](*arrays, at_a_time, self.threads)
        return y

    def embedding(self, weight: Any, indices: Array) -> Array:
        """Row `indices` of weight (V, C): indices (...) -> (..., C) float32."""
        y = np.empty((*indices.shape, weight.shape[1]), FLOAT32)
        dequantize_rows(weight.blocks, flat(indices.astype(np.int64, copy=False)), y.reshape(-1, weight.shape[1]))
        return y

    def kernel_for(self, x: Array, kind: tuple[str, str] | None) -> Strided | None:
        """The kernel for x and blocks of that kind, if there is one."""
        is_quantized = kind is not None and kind[1] in FORMATS and kind[0] == x.dtype == FLOAT32
        return QUANTIZED_DECODE_BLOCKS if is_quantized else super().kernel_for(x, kind)


def create() -> Backend:
    """The kernels, for `tensorgrad.backend.quantization`."""
    return QuantizedNumba()
