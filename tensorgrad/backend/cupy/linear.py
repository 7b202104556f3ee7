"""Matrix products by cuBLASLt, which adds the bias and computes GELU in the same kernel, and sums over rows.

cuBLASLt is column-major: it reads a row-major matrix as its transpose. So d = a @ b is computed as d^T = b^T @ a^T. The
operands are swapped, a transpose is a flag, and nothing is copied.
"""

from collections.abc import Callable
from functools import cached_property
from typing import Any

from tensorgrad.backend.arrays import Array, as_rows, is_half
from tensorgrad.backend.cupy import cublaslt
from tensorgrad.backend.cupy.cublaslt import CublasLt, CublasLtError, Matrix, Product
from tensorgrad.backend.cupy.kernels import Kernels, supported, wide_dtype

AMPERE = 80  # compute capability, times ten, of the first tensor cores for bfloat16 and TF32
ROW_BYTES = 16  # cuBLASLt's fast kernels need the distance of rows to be a multiple
AUX_MULTIPLE = 8  # of which the length of a row must be a multiple for GELU in the same kernel
TIMED_RUNS = 5  # of a candidate, when a plan is autotuned


class Linear(Kernels):
    """Matrix products in float64, float32, float16 and bfloat16; `math.py` computes other dtypes.

    Half precision is summed in float32. The gradients of its weights are float32, since they are added up.
    """

    tf32 = False  # round float32 to TF32, with 10 bits of mantissa, for the tensor cores

    @cached_property
    def cublaslt(self) -> CublasLt:
        """The library, loaded at the first product."""
        runtime = self.xp.cuda.runtime
        found = runtime.getDeviceProperties(runtime.getDevice())
        return cublaslt.load(f"{found['name'].decode()}, {found['multiProcessorCount']} multiprocessors")

    @cached_property
    def tuned(self) -> set[Product]:
        """Products that were planned with the fastest of several algorithms."""
        return set()

    @cached_property
    def workspaces(self) -> dict[int, Array]:
        """The workspace of every stream that products have run on."""
        return {}

    @cached_property
    def unfused(self) -> set[Product]:
        """Products for which cuBLASLt has no kernel with their epilogue."""
        return set()

    def lacks(self, what: str) -> str | None:
        capability = self.xp.cuda.Device().compute_capability
        if what in ("bfloat16", "tf32") and int(capability) < AMPERE:
            return f"needs a GPU of compute capability 8.0, and this one has {int(capability) / 10}: choose float16"
        return None if what in ("tf32", "cuda_graph") else super().lacks(what)

    def set_float32_precision(self, tf32: bool) -> None:
        self.tf32 = tf32

    def matmul(self, a: Array, b: Array) -> Array:
        if a.ndim < 2 or b.ndim < 2:
            left, right = a[None, :] if a.ndim == 1 else a, b[:, None] if b.ndim == 1 else b
            y = self.matmul(left, right)
            y = y[..., 0] if b.ndim == 1 else y
            return y[..., 0] if a.ndim == b.ndim == 1 else y[..., 0, :] if a.ndim == 1 else y
        a, b = self._same_dtype(a, b)
        if not self._supports(a, b):
            return super().matmul(a, b)
        if b.ndim == 2:
            y = self.xp.empty((*a.shape[:-1], b.shape[-1]), a.dtype)
            self._multiply(as_rows(a), b, as_rows(y))
            return y
        leading = self._leading(a, b)
        y = self.xp.empty((*leading, a.shape[-2], b.shape[-1]), a.dtype)
        left, right = (self._stack(x, leading) for x in (a, b))
        self._multiply(left, right, y.reshape(-1, *y.shape[-2:]))
        return y

    def add_matmul(self, c: Array, a: Array, b: Array) -> None:
        if not self._supports(a, b) or c.dtype not in (a.dtype, self.wide(a[:0]).dtype) or not c.flags.c_contiguous:
            super().add_matmul(c, a, b)
        else:
            self._multiply(a, b, c, beta=1.0)

    def linear(self, x: Array, weight: Array, bias: Array | None) -> Array:
        x, weight = self._same_dtype(x, weight)
        if not self._supports(x, weight):
            return super().linear(x, weight, bias)
        if x.ndim == 2 and bias is None:  # logits: a row of 50257 numbers is not aligned, and its products are slow
            n = len(weight)
            y = self.aligned_rows((len(x), n), x.dtype, padded=n > 1 and n * x.itemsize % ROW_BYTES > 0)
        else:
            y = self.xp.empty((*x.shape[:-1], len(weight)), x.dtype)
        if bias is not None:
            bias = self._readable_bias(bias, x.dtype)
            if self._multiply(as_rows(x), weight.T, as_rows(y), bias=bias, epilogue="bias"):
                return y
        self._multiply(as_rows(x), weight.T, as_rows(y))
        if bias is not None:  # no algorithm adds a bias to such matrices, for example to a single row
            y += bias
        return y

    def linear_gelu_tanh(self, x: Array, weight: Array, bias: Array | None) -> tuple[Array, Array]:
        """One kernel in half precision; how accurate its tanh is in float32 is not documented."""
        if not self._has_gelu(x, weight, len(weight)):
            return super().linear_gelu_tanh(x, weight, bias)
        y, h = (self.xp.empty((*x.shape[:-1], len(weight)), x.dtype) for _ in range(2))
        given = {} if bias is None else {"bias": self._readable_bias(bias, x.dtype)}
        epilogue = "bias_gelu" if given else "gelu"
        if self._multiply(as_rows(x), weight.T, as_rows(y), aux=as_rows(h), epilogue=epilogue, **given):
            return y, h
        return super().linear_gelu_tanh(x, weight, bias)

    def linear_gelu_tanh_backward(
        self, dy: Array, weight: Array, h: Array, activation: Array | None, needs_bias: bool
    ) -> tuple[Array, Array, Array | None]:
        """The same; with the sum for the bias in it too (DGELU_BGRAD), the product takes three times as long."""
        if not self._has_gelu(dy, weight, h.shape[-1]) or h.dtype != dy.dtype or not h.flags.c_contiguous:
            return super().linear_gelu_tanh_backward(dy, weight, h, activation, needs_bias)
        dh = self.xp.empty(h.shape, h.dtype)
        if not self._multiply(as_rows(dy), weight, as_rows(dh), aux=as_rows(h), epilogue="dgelu"):
            return super().linear_gelu_tanh_backward(dy, weight, h, activation, needs_bias)
        activation = self.gelu_tanh(h) if activation is None else activation
        return dh, activation, self.linear_backward_bias(dh) if needs_bias else None

    def keeps_activation(self, activation: Array) -> bool:
        return is_half(activation.dtype) and bool(activation.nbytes < self.min_recompute_bytes)

    def _has_gelu(self, x: Array, weight: Array, n: int) -> bool:
        """Whether a product of x and weight with rows of n numbers may have a GELU in the same kernel."""
        arrays = isinstance(weight, self.array_type) and self._supports(x, weight)
        return arrays and is_half(x.dtype) and n % AUX_MULTIPLE == 0

    def _readable_bias(self, bias: Array, dtype: Any) -> Array:
        """A bias as cuBLASLt reads it: there is no attribute for its alignment."""
        bias = self.xp.ascontiguousarray(bias, dtype=dtype)
        return bias if bias.data.ptr % 16 == 0 else bias.copy()

    def linear_backward_weight(self, dy: Array, x: Array) -> Array:
        dy, x = self._same_dtype(as_rows(dy), as_rows(x))
        if not self._supports(dy.T, x):
            return super().linear_backward_weight(dy, x)
        dweight = self.xp.empty((dy.shape[1], x.shape[1]), self.wide(x[:0]).dtype)
        self._multiply(dy.T, x, dweight)
        return dweight

    def linear_backward_bias(self, dy: Array) -> Array:
        if not supported(dy):
            return super().linear_backward_bias(dy)
        return self.column_sums(as_rows(self.contiguous(dy)), wide_dtype(dy.dtype))

    def _supports(self, a: Array, b: Array) -> bool:
        return a.dtype == b.dtype and a.dtype.name in cublaslt.TYPES and a.size > 0 and b.size > 0

    def _same_dtype(self, a: Array, b: Array) -> tuple[Array, Array]:
        """Both converted to the dtype of their product."""
        if a.dtype == b.dtype:
            return a, b
        dtype = self.xp.result_type(a, b)
        return a.astype(dtype, copy=False), b.astype(dtype, copy=False)

    def _leading(self, a: Array, b: Array) -> tuple[int, ...]:
        """The broadcast shape of the axes before those of the matrices."""
        return tuple(self.xp.broadcast_shapes(a.shape[:-2], b.shape[:-2]))

    def _stack(self, x: Array, leading: tuple[int, ...]) -> Array:
        """x (..., m, n) -> (s, m, n): a view where the leading axes can be joined, else a copy."""
        return self.xp.broadcast_to(x, (*leading, *x.shape[-2:])).reshape(-1, *x.shape[-2:])

    def _multiply(
        self, a: Array, b: Array, d: Array, beta: float = 0.0, bias: Array | None = None, aux: Array | None = None,
        epilogue: str = "",
    ) -> bool:  # fmt: skip
        """d = a @ b + beta d with an epilogue; (m, k), (k, n), (m, n), or stacks of them (s, ...).

        bias (n) is what the epilogue reads, aux (m, n) what it reads or writes. False where there is no kernel with it.
        """
        a, b = self._readable(a), self._readable(b)
        (left, transpose_left), (right, transpose_right), (result, _) = map(column_major, (b, a, d))
        product = Product(left, right, result, transpose_left, transpose_right, self._compute(a), epilogue)
        if product in self.unfused:
            return False
        stream = self.xp.cuda.get_current_stream().ptr
        space = self._workspace(stream)
        bias_address, aux_address = (0 if x is None else x.data.ptr for x in (bias, aux))
        try:
            if self.autotune and product not in self.tuned:
                self.tuned.add(product)
                scratch = self.xp.empty((result.batch, result.cols, result.ld), d.dtype)  # the candidates write there
                self.cublaslt.tune(
                    product, b.data.ptr, a.data.ptr, scratch.data.ptr, bias_address, space, stream, self._milliseconds,
                    aux_address,
                )  # fmt: skip
            self.cublaslt.multiply(
                product, b.data.ptr, a.data.ptr, d.data.ptr, bias_address, beta, space, stream, aux_address
            )
        except CublasLtError as error:
            if not epilogue or error.status != cublaslt.NOT_SUPPORTED:
                raise
            self.unfused.add(product)
            return False
        return True

    def _readable(self, x: Array) -> Array:
        """x, or a contiguous copy where cuBLASLt cannot read its layout."""
        return x if packed(x) else self.xp.ascontiguousarray(x)

    def _compute(self, a: Array) -> str:
        if a.dtype.name == "float64":
            return "float64"
        return "tf32" if self.tf32 and not is_half(a.dtype) else "float32"

    def _workspace(self, stream: int) -> int:
        if stream not in self.workspaces:
            self.workspaces[stream] = self.xp.empty(cublaslt.WORKSPACE_BYTES, "uint8")
        return int(self.workspaces[stream].data.ptr)

    def _milliseconds(self, run: Callable[[], None]) -> float:
        """The time of a run on the GPU, after a run to warm up."""
        start, end = (self.xp.cuda.Event() for _ in range(2))
        run()
        start.record()
        for _ in range(TIMED_RUNS):
            run()
        end.record()
        end.synchronize()
        return float(self.xp.cuda.get_elapsed_time(start, end)) / TIMED_RUNS


def packed(x: Array) -> bool:
    """Whether rows or columns of the matrices in x are contiguous, and strides are not negative."""
    m, n = x.shape[-2:]
    down, right = x.strides[-2:]
    size = x.itemsize
    rows = right == size and (m == 1 or down >= n * size)
    columns = down == size and (n == 1 or right >= m * size)
    return bool((rows or columns) and (x.ndim == 2 or x.strides[0] >= 0) and all(s % size == 0 for s in x.strides))


def column_major(x: Array) -> tuple[Matrix, bool]:
    """The transpose of packed x (..., m, n) as a column-major matrix, and whether it still has to be transposed.

    Contiguous rows of x are the columns of its transpose. Where columns of x are contiguous instead, the matrix is x.
    """
    m, n = x.shape[-2:]
    down, right = (stride // x.itemsize for stride in x.strides[-2:])
    batch, stride = (x.shape[0], x.strides[0] // x.itemsize) if x.ndim == 3 else (1, 0)
    at = x.data.ptr
    alignment = min(at & -at, 256)
    if right == 1 and (m == 1 or down >= n):
        return Matrix(x.dtype.name, n, m, max(down, n), batch, stride, alignment), False
    return Matrix(x.dtype.name, m, n, max(right, m), batch, stride, alignment), True
