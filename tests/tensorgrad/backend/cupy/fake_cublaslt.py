"""A stand-in for cuBLASLt: what a product is described as, computed on NumPy's memory.

It takes the same description and the same addresses as the library, and knows nothing of the arrays that they come
from: wherever sizes, strides or transposes are wrong, so is what it computes. It refuses what the library's
documentation does not allow.
"""

import ctypes
from typing import Any

import numpy as np
from fake_cupy import run
from fake_memory import touch

from tensorgrad.backend.cupy.cublaslt import NOT_SUPPORTED, CublasLtError, Matrix, Product

INVALID_VALUE = 7  # CUBLAS_STATUS_INVALID_VALUE
WORKSPACE_ALIGNMENT = 256  # bytes
TENSOR_CORE_ALIGNMENT = 16  # bytes: of addresses, and from a column to the next, for the fast kernels
AUX_LD_MULTIPLE = 8  # CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD with a GELU


class FakeCublasLt:
    """cuBLASLt's `multiply` and `tune` on the memory at the addresses, from the description alone.

    unaligned: products in half precision that are computed correctly and several times slower than they could be,
    because an address or a leading dimension is not a multiple of 16 bytes.
    """

    def __init__(self, card: str = "") -> None:
        self.plans: dict[Product, Any] = {}
        self.requested: list[Product] = []
        self.unaligned: list[Product] = []
        self.streams: set[int] = set()
        self.refused: set[str] = set()  # epilogues for which there is no algorithm

    def multiply(
        self, product: Product, a: int, b: int, d: int, bias: int, beta: float, workspace: int, stream: int,
        aux: int = 0,
    ) -> None:  # fmt: skip
        require(product, a, b, d, bias, workspace, aux)
        self.requested.append(product)
        self.streams.add(stream)
        half, matrices = np.dtype(product.a.dtype).itemsize == 2, zip((a, b, d), product[:3], strict=True)
        if half and not all(aligned(address, matrix) for address, matrix in matrices):
            self.unaligned.append(product)
        if product.epilogue in self.refused or (product.aux and product.d.dtype == "float64"):
            raise CublasLtError("cublasLtMatmulAlgoGetHeuristic: refused", NOT_SUPPORTED)
        backward = product.epilogue.startswith("d")
        touch((a, b, bias, *((aux,) if backward else ())), (d, workspace, *(() if backward else (aux,))))
        run(lambda: self.now(product, a, b, d, bias, beta, aux))

    def now(self, product: Product, a: int, b: int, d: int, bias: int, beta: float, aux: int = 0) -> None:
        """Multiply at once, even while a graph is recorded."""
        wide = np.float64 if product.compute == "float64" else np.float32
        left = turned(at(a, product.a), product.transpose_a).astype(wide)
        right = turned(at(b, product.b), product.transpose_b).astype(wide)
        result = at(d, product.d)
        value = left @ right
        if beta:
            value = value + beta * result.astype(wide)
        row = Matrix(product.d.dtype, product.d.rows, 1, product.d.rows)
        if product.epilogue in ("bias", "bias_gelu"):
            value = value + at(bias, row).astype(wide)
        if product.epilogue in ("gelu", "bias_gelu"):
            at(aux, product.d)[...] = value.astype(result.dtype)
            value = gelu(value)[0]
        if product.epilogue == "dgelu":
            value = value * gelu(at(aux, product.d).astype(wide))[1]
        result[...] = value.astype(result.dtype)

    def tune(
        self, product: Product, a: int, b: int, d: int, bias: int, workspace: int, stream: int, stopwatch: Any,
        aux: int = 0,
    ) -> None:  # fmt: skip
        assert stopwatch(lambda: self.multiply(product, a, b, d, bias, 0.0, workspace, stream, aux)) > 0
        self.plans[product] = True


def gelu(x: Any) -> tuple[Any, Any]:
    """GELU's approximation by tanh, and its derivative, by the formulas of the paper (arXiv:1606.08415)."""
    inner = np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)
    slope = np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * x**2)
    return x * (1 + np.tanh(inner)) / 2, (1 + np.tanh(inner)) / 2 + x * slope / (2 * np.cosh(inner) ** 2)


def require(product: Product, a: int, b: int, d: int, bias: int, workspace: int, aux: int = 0) -> None:
    """Raise the error of a product that breaks a documented rule."""
    for name, address, matrix in zip("abd", (a, b, d), product[:3], strict=True):
        size = np.dtype(matrix.dtype).itemsize
        if matrix.ld < matrix.rows or matrix.rows < 1 or matrix.cols < 1 or matrix.stride < 0:
            raise invalid(product, f"the layout of {name}")
        if matrix.alignment % size or address % matrix.alignment:
            raise invalid(product, f"the alignment of {name}")
    if product.a.dtype != product.b.dtype or product.d.dtype not in (product.a.dtype, "float32"):
        raise invalid(product, "the dtypes")
    if not len({matrix.batch for matrix in product[:3]}) == 1:
        raise invalid(product, "the numbers of matrices")
    if product.bias != bool(bias) or bias % TENSOR_CORE_ALIGNMENT:
        raise invalid(product, "the bias")
    if product.aux != bool(aux) or aux % TENSOR_CORE_ALIGNMENT:
        raise invalid(product, "the aux")
    if product.aux and product.d.ld % AUX_LD_MULTIPLE:  # it has the layout of d
        raise invalid(product, "the leading dimension of the aux")
    if not workspace or workspace % WORKSPACE_ALIGNMENT:
        raise invalid(product, "the workspace")


def invalid(product: Product, what: str) -> CublasLtError:
    return CublasLtError(f"cublasLtMatmul: CUBLAS_STATUS_INVALID_VALUE for {product}: {what}", INVALID_VALUE)


def aligned(address: int, matrix: Matrix) -> bool:
    """Whether all columns of a matrix begin at multiples of 16 bytes."""
    size = np.dtype(matrix.dtype).itemsize
    steps = (address, matrix.ld * size * (matrix.cols > 1), matrix.stride * size)
    return all(step % TENSOR_CORE_ALIGNMENT == 0 for step in steps)


def at(address: int, matrix: Matrix) -> Any:
    """The memory that a layout describes: (batch, rows, cols), by columns."""
    dtype = np.dtype(matrix.dtype)
    n = (matrix.batch - 1) * matrix.stride + (matrix.cols - 1) * matrix.ld + matrix.rows
    flat = np.frombuffer((ctypes.c_char * (n * dtype.itemsize)).from_address(address), dtype)
    strides = tuple(dtype.itemsize * step for step in (matrix.stride, 1, matrix.ld))
    return np.lib.stride_tricks.as_strided(flat, (matrix.batch, matrix.rows, matrix.cols), strides)


def turned(x: Any, transpose: bool) -> Any:
    return x.swapaxes(-1, -2) if transpose else x
