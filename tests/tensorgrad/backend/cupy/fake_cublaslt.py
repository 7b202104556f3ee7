"""A stand-in for cuBLASLt: what a product is described as, computed on NumPy's memory.

It takes the same description and the same addresses as the library, and knows nothing of the arrays that they come
from: wherever sizes, strides, transposes or alignments are wrong, so is what it computes.
"""

import ctypes
from typing import Any

import numpy as np
from fake_cupy import do

from tensorgrad.backend.cupy.cublaslt import NOT_SUPPORTED, CublasLtError, Matrix, Product


class FakeCublasLt:
    """cuBLASLt's `multiply` and `tune` on the memory at the addresses, from the description alone."""

    def __init__(self) -> None:
        self.plans: dict[Product, Any] = {}
        self.requested: list[Product] = []
        self.streams: set[int] = set()
        self.refuse_bias = False

    def multiply(
        self, product: Product, a: int, b: int, d: int, bias: int, beta: float, workspace: int, stream: int
    ) -> None:  # fmt: skip
        do(lambda: self.now(product, a, b, d, bias, beta, workspace, stream))

    def now(
        self, product: Product, a: int, b: int, d: int, bias: int, beta: float, workspace: int, stream: int
    ) -> None:  # fmt: skip
        """Multiply at once, even while a graph is recorded."""
        self.requested.append(product)
        self.streams.add(stream)
        assert workspace
        if product.bias and self.refuse_bias:
            raise CublasLtError("cublasLtMatmulAlgoGetHeuristic: refused", NOT_SUPPORTED)
        wide = np.float64 if product.compute == "float64" else np.float32
        left = turned(at(a, product.a), product.transpose_a).astype(wide)
        right = turned(at(b, product.b), product.transpose_b).astype(wide)
        result = at(d, product.d)
        value = left @ right
        if beta:
            value = value + beta * result.astype(wide)
        if product.bias:
            row = Matrix(product.d.dtype, product.d.rows, 1, product.d.rows, alignment=16)
            value = value + at(bias, row).astype(wide)
        result[...] = value.astype(result.dtype)

    def tune(
        self, product: Product, a: int, b: int, d: int, bias: int, workspace: int, stream: int, stopwatch: Any
    ) -> None:  # fmt: skip
        loose = product._replace(d=product.d._replace(alignment=1))  # NumPy's memory is not aligned as CuPy's is
        assert stopwatch(lambda: self.multiply(loose, a, b, d, bias, 0.0, workspace, stream)) > 0
        self.plans[product] = True


def at(address: int, matrix: Matrix) -> Any:
    """The memory that a layout describes: (batch, rows, cols), by columns."""
    assert address % matrix.alignment == 0
    assert matrix.ld >= matrix.rows > 0
    assert matrix.cols > 0
    dtype = np.dtype(matrix.dtype)
    n = (matrix.batch - 1) * matrix.stride + (matrix.cols - 1) * matrix.ld + matrix.rows
    flat = np.frombuffer((ctypes.c_char * (n * dtype.itemsize)).from_address(address), dtype)
    strides = tuple(dtype.itemsize * step for step in (matrix.stride, 1, matrix.ld))
    return np.lib.stride_tricks.as_strided(flat, (matrix.batch, matrix.rows, matrix.cols), strides)


def turned(x: Any, transpose: bool) -> Any:
    return x.swapaxes(-1, -2) if transpose else x
