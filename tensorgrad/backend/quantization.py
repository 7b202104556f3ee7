"""Block-quantised weights: 32 neighbouring weights share a scale, and each is stored as an integer of 8 or 4 bits.

The formats and their bytes are those of GGUF, the files of llama.cpp, so that weights can stay where a file is mapped
into memory. A block is one row of bytes; d and m are float16, and q[0] to q[31] are the integers:

    q8_0  34 bytes: d, then 32 int8                weight[i] = d q[i]          8.5 bits a weight
    q4_0  18 bytes: d, then 16 bytes of two q      weight[i] = d (q[i] - 8)    4.5 bits a weight
    q4_1  20 bytes: d, m, then 16 bytes of two q   weight[i] = d q[i] + m      5 bits a weight

Byte j of the 16 has q[j] in its lower four bits and q[j + 16] in its upper four: both halves of a block are then
unpacked by one operation each.
"""

import dataclasses
import functools
import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from tensorgrad.backend import check
from tensorgrad.backend.arrays import Array, Quantized
from tensorgrad.backend.math import Math
from tensorgrad.backend.runtime import Backend

BLOCK = 32  # weights
LARGEST_Q8_0 = np.arange(127, 63, -1, dtype=np.float32)  # what the largest weight of a block of q8_0 may become
MAX_ROWS_ELEMENTS = 2**16  # weights that are dequantised at a time: a quarter of a megabyte of float32
# What reads quantised weights, and as which operands.
OPERANDS = {
    "linear": (1,), "linear_cross_entropy": (1,), "mlp": (1, 3), "embedding": (0,), "Tensor": (0,),
    "decode_blocks": range(1, sys.maxsize),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class BlockFormat:
    """How the weights of a block are stored; in place of a dtype, to which NumPy has no equivalent.

    quantize: (blocks, 32) float32 -> d, or d and m, each (blocks, 1) float32, and the integers as bytes (blocks, ...).
    dequantize: the reverse, to (blocks, 32) float32.
    """

    name: str
    n_scales: int
    n_bytes: int
    quantize: Callable[[Array], tuple[Array, ...]]
    dequantize: Callable[..., Array]
    kind = "q"  # neither floating nor integer

    def __str__(self) -> str:
        return self.name


def _reciprocal(d: Array) -> Array:
    """1 / d, and 0 for the d of a block that is all 0."""
    return np.where(d == 0, np.float32(0), 1 / d)


def _pack(q: Array) -> Array:
    """Integers of four bits, (blocks, 32), as (blocks, 16) bytes."""
    q = q.astype(np.uint8)
    return q[:, :16] | q[:, 16:] << 4


def _unpack(packed: Array) -> Array:
    return np.concatenate([packed & 15, packed >> 4], axis=1)


def scales_q8_0(x: Array) -> Array:
    """The scales to choose from, float16 in the form of float32: x (blocks, 32) -> (blocks, 64)."""
    return (abs(x).max(axis=1, keepdims=True) / LARGEST_Q8_0).astype(np.float16).astype(np.float32)


def integers_q8_0(x: Array, d: Array) -> Array:
    """The integers that with the scale d are nearest to x, as floats."""
    return np.rint(x * _reciprocal(d)).clip(-127, 127)


def squared_error(x: Array, d: Array) -> Array:
    """The sum of the squared errors of q8_0 with the scale d: x (32, ...), d (...) -> (...)."""
    errors = np.square(x - d * integers_q8_0(x, d))
    while len(errors) > 1:  # halves are added, so that the bits are the same on every backend
        errors = errors[: len(errors) // 2] + errors[len(errors) // 2 :]
    return errors[0]


def _quantize_q8_0(x: Array) -> tuple[Array, ...]:
    """The largest weight becomes 127, 126 ... or 64, or that with a minus: whichever has the smallest squared error.

    Numbers below 64 need not be tried: half of their scale has the same multiples and more.
    """
    scales, x = scales_q8_0(x).T, np.ascontiguousarray(x.T)  # all blocks in one operation
    d, least = scales[0], np.full(x.shape[1], np.inf, np.float32)
    for scale in scales:
        error = squared_error(x, scale)
        is_better = error < least
        d, least = np.where(is_better, scale, d), np.where(is_better, error, least)
        if not least.any():
            break
    return d[:, None], integers_q8_0(x, d).T.astype(np.int8).view(np.uint8)


def _dequantize_q8_0(d: Array, q: Array) -> Array:
    return d * q.view(np.int8)


def _quantize_q4_0(x: Array) -> tuple[Array, ...]:
    """The weight that is largest without its sign becomes -8, which the other sign cannot reach: d may be negative."""
    d = np.take_along_axis(x, abs(x).argmax(axis=1, keepdims=True), axis=1) / -8
    return d, _pack(np.trunc(x * _reciprocal(d) + 8.5).clip(0, 15))


def _dequantize_q4_0(d: Array, packed: Array) -> Array:
    return d * (_unpack(packed).astype(np.int8) - 8)


def _quantize_q4_1(x: Array) -> tuple[Array, ...]:
    """The smallest weight becomes 0 and the largest 15."""
    m = x.min(axis=1, keepdims=True)
    d = (x.max(axis=1, keepdims=True) - m) / 15
    return d, m, _pack(np.trunc((x - m) * _reciprocal(d) + 0.5).clip(0, 15))


def _dequantize_q4_1(d: Array, m: Array, packed: Array) -> Array:
    return d * _unpack(packed) + m


FORMATS = {
    f.name: f
    for f in (
        BlockFormat("q8_0", 1, 34, _quantize_q8_0, _dequantize_q8_0),
        BlockFormat("q4_0", 1, 18, _quantize_q4_0, _dequantize_q4_0),
        BlockFormat("q4_1", 2, 20, _quantize_q4_1, _dequantize_q4_1),
    )
}


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class QuantizedArray(Quantized):
    """A matrix (m, n) of block-quantised weights, which cannot be written: the `data` of a tensor without gradient.

    type: "q8_0", "q4_0" or "q4_1". shape: (m, n), n a multiple of 32. blocks: its bytes, uint8 (m, bytes of a row) in
    C order, which are not copied and may be mapped from a file. Raises ValueError for what does not fit.
    """

    type: str
    shape: tuple[int, int]
    blocks: Array

    def __post_init__(self) -> None:
        dtype, blocks = _format("QuantizedArray", self.type), np.asarray(self.blocks).view()
        if len(self.shape) != 2 or self.shape[1] % BLOCK or min(self.shape) < 1:
            raise ValueError(f"QuantizedArray: shape {self.shape} is not (m, n) with n a multiple of {BLOCK}")
        needed = self.shape[0], self.shape[1] // BLOCK * dtype.n_bytes
        if blocks.dtype != np.uint8 or blocks.shape != needed or not blocks.flags.c_contiguous:
            given = f"blocks {blocks.dtype} {blocks.shape}"
            raise ValueError(f"QuantizedArray: {given} for {dtype} {self.shape}; uint8 {needed} in C order is needed")
        blocks.flags.writeable = False
        object.__setattr__(self, "blocks", blocks)
        object.__setattr__(self, "shape", (int(self.shape[0]), int(self.shape[1])))

    ndim = 2

    @property
    def dtype(self) -> BlockFormat:
        """Its format, with the `name` and `kind` of a dtype: "q" is neither floating nor integer."""
        return FORMATS[self.type]

    @property
    def size(self) -> int:
        """The number of weights."""
        return self.shape[0] * self.shape[1]

    @property
    def nbytes(self) -> int:
        """The bytes that they take."""
        return int(self.blocks.nbytes)

    @property
    def flags(self) -> Any:
        """As of NumPy's arrays: it is not writeable."""
        return self.blocks.flags

    def __repr__(self) -> str:
        return f"QuantizedArray({self.type}, {self.shape}, {self.nbytes:,} bytes)"

    def __array__(self, *args: Any, **options: Any) -> Any:
        """Called by NumPy's functions, which would take it for an object. Raises TypeError."""
        raise TypeError(f"numpy: {self!r} is no array of numbers: give its dequantize()")

    def rows(self, key: Any) -> Array:
        """The weights of the rows `key`, a slice or an array of indices (k): (k, n) float32."""
        dtype, rows = self.dtype, self.blocks[key]
        blocks = rows.reshape(-1, dtype.n_bytes)
        n = 2 * dtype.n_scales
        scales = np.ascontiguousarray(blocks[:, :n]).view(np.float16).astype(np.float32)
        weights = dtype.dequantize(*np.split(scales, dtype.n_scales, axis=1), blocks[:, n:])
        return weights.reshape(len(rows), self.shape[1])

    def parts(self) -> Iterator[slice]:
        """Slices of at most MAX_ROWS_ELEMENTS weights that together are all rows; at least a row each."""
        return _parts(*self.shape)

    def dequantize(self) -> Array:
        """All weights, (m, n) float32."""
        weights = np.empty(self.shape, np.float32)
        for part in self.parts():
            weights[part] = self.rows(part)
        return weights

    def kernels(self, name: str, k: Backend | None, operands: Sequence[Any]) -> Backend:
        """The kernels for an op with quantised operands; k: the backend of the others, None if there are none.

        Raises TypeError, with the op's name, for an op that does not read them, and on a GPU.
        """
        slots = OPERANDS.get(name, ())
        for i, x in enumerate(operands):
            if type(x) is QuantizedArray and i not in slots:
                rule = "only linear layers, as weights, and embedding read that; else give its dequantize()"
                raise TypeError(f"{name}: an operand is quantised, {x.type} {x.shape}: {rule}")
        return k if isinstance(k, QuantizedMath) else _kernels(name, "numpy" if k is None else k.name)


@functools.cache
def _kernels(name: str, backend: str) -> Backend:
    if backend not in ("numpy", "numba"):
        raise TypeError(f"{name}: quantised weights are read on backends numpy and numba, not on {backend}")
    quantized: Backend = importlib.import_module(f"tensorgrad.backend.{backend}.quantized").create()
    return quantized


def quantize(array: Any, type: str) -> QuantizedArray:
    """A matrix (m, n), n a multiple of 32, as block-quantised weights: "q8_0", "q4_0" or "q4_1".

    Raises ValueError for an unknown type, for another shape, and for elements that are not finite or too large for a
    scale of float16. The bytes of q4_0 and q4_1 are those of `quantize` of the package gguf; those of q8_0 have at most
    its squared error in every block, and weights that were in q8_0 before stay as they are.
    """
    dtype, x = _format("quantize", type), np.asarray(array)
    if x.ndim != 2 or x.shape[1] % BLOCK or x.size == 0:
        raise ValueError(f"quantize: shape {x.shape} is not (m, n) with n a multiple of {BLOCK}")
    blocks = np.empty((len(x), x.shape[1] // BLOCK * dtype.n_bytes), np.uint8)
    k: Any = _kernels("quantize", "numpy" if check("numba") else "numba")  # the same bytes, but Numba is faster
    for part in _parts(*x.shape):
        with np.errstate(all="ignore"):
            *scales, q = k.quantize(dtype, x[part].astype(np.float32).reshape(-1, BLOCK))
            half = np.concatenate(scales, axis=1).astype(np.float16)
        if not np.isfinite(half).all():
            raise ValueError(f"quantize: an element is nan, infinite, or too large for the float16 scales of {type}")
        blocks[part] = np.concatenate([half.view(np.uint8), q], axis=1).reshape(-1, blocks.shape[1])
    return QuantizedArray(type, x.shape, blocks)


def _format(name: str, type: str) -> BlockFormat:
    if type not in FORMATS:
        raise ValueError(f"{name}: type {type!r} is unknown: choose {', '.join(FORMATS)}")
    return FORMATS[type]


def _parts(m: int, n: int) -> Iterator[slice]:
    step = max(1, MAX_ROWS_ELEMENTS // n)
    return (slice(first, min(first + step, m)) for first in range(0, m, step))


class QuantizedMath(Math):
    """What reads quantised weights: some rows at a time are dequantised, never the whole matrix."""

    def asarray(self, x: Any, dtype: Any = None) -> Any:
        """A quantised array as it is. Raises TypeError for a dtype: it has none."""
        if not isinstance(x, QuantizedArray):
            return super().asarray(x, dtype)  # type: ignore[misc]
        if dtype is not None:
            raise TypeError(f"Tensor: {x.type} {x.shape} is not converted to {dtype}: give the array's dequantize()")
        return x

    def quantize(self, dtype: BlockFormat, x: Array) -> tuple[Array, ...]:
        """x (blocks, 32) float32 -> the scales and the integers of its blocks: see BlockFormat."""
        return dtype.quantize(x)

    def linear(self, x: Array, weight: Any, bias: Array | None) -> Array:
        """x (..., n) @ weight (m, n)^T + bias (m) -> (..., m)."""
        if not isinstance(weight, QuantizedArray):
            return super().linear(x, weight, bias)
        wide = self.wide(x)
        y = self.xp.concatenate([self.matmul(wide, weight.rows(part).T) for part in weight.parts()], axis=-1)
        if bias is not None:
            y += bias
        return self.narrow(y, x.dtype)

    def linear_backward_x(self, dy: Array, weight: Any) -> Array:
        """dx = dy @ weight."""
        if not isinstance(weight, QuantizedArray):
            return super().linear_backward_x(dy, weight)
        wide = self.wide(dy)
        dx: Any = sum(self.matmul(wide[..., part], weight.rows(part)) for part in weight.parts())
        return self.narrow(dx, dy.dtype)

    def embedding(self, weight: Any, indices: Array) -> Array:
        """Row `indices` of weight (V, C): indices (...) -> (..., C) float32."""
        if not isinstance(weight, QuantizedArray):
            return super().embedding(weight, indices)
        return weight.rows(indices.reshape(-1)).reshape(*indices.shape, weight.shape[1])
