"""Matrix products through cuBLASLt: operands as they lie, a plan a shape, the bias added on the way.

cuBLASLt reads memory by columns, where our rows are columns and a matrix is its own transpose. So d = a @ b is asked
for as d^T = b^T @ a^T, and nothing is moved: the operands change places, and what is transposed stays a flag.
"""

from collections.abc import Callable
from functools import cached_property

from tensorgrad.backend.arrays import Array, as_rows, is_half
from tensorgrad.backend.cupy import cublaslt
from tensorgrad.backend.cupy.cublaslt import (
    NOT_SUPPORTED,
    TYPES,
    WORKSPACE_BYTES,
    CublasLt,
    CublasLtError,
    Matrix,
    Product,
)
from tensorgrad.backend.cupy.kernels import Kernels, claimed, wide_dtype

AMPERE = 80  # compute capability, times ten, of the first tensor cores for bfloat16 and TF32
TIMED_RUNS = 5  # of a candidate, when plans are autotuned


class Linear(Kernels):
    """Matrix products in float64, float32, float16 and bfloat16; the plain mathematics for all else.

    Half precision is added up in float32. Gradients of weights come back in float32, for whoever adds them up.
    """

    tf32 = False  # multiply float32 with the 10 bits of mantissa that the tensor cores take: `set_float32_precision`
    autotune = False  # time the candidates for every new shape, once; else the heuristic's first choice is taken

    @cached_property
    def cublaslt(self) -> CublasLt:
        """The library, loaded at the first product."""
        return cublaslt.load()

    @cached_property
    def workspaces(self) -> dict[int, Array]:
        """A workspace for every stream that products have run on."""
        return {}

    @cached_property
    def unfused(self) -> set[Product]:
        """Products whose bias has to be added in a kernel of its own."""
        return set()

    def lacks(self, what: str) -> str | None:
        """Why this GPU cannot compute in a dtype, in one line; None where it can."""
        capability = self.xp.cuda.Device().compute_capability
        if what in ("bfloat16", "tf32") and int(capability) < AMPERE:
            return f"needs a GPU of compute capability 8.0, and this one has {int(capability) / 10}: choose float16"
        return None if what in ("tf32", "cuda_graph") else super().lacks(what)

    def set_float32_precision(self, tf32: bool) -> None:
        """Whether float32 products may use TF32."""
        self.tf32 = tf32

    # --- the backend's methods ------------------------------------------------------------------

    def matmul(self, a: Array, b: Array) -> Array:
        """a (..., m, n) @ b (..., n, p) -> (..., m, p)."""
        if a.ndim < 2 or b.ndim < 2:
            left, right = a[None, :] if a.ndim == 1 else a, b[:, None] if b.ndim == 1 else b
            y = self.matmul(left, right)
            y = y[..., 0] if b.ndim == 1 else y
            return y[..., 0] if a.ndim == b.ndim == 1 else y[..., 0, :] if a.ndim == 1 else y
        a, b = self._alike(a, b)
        if not self._takes(a, b):
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
        """c += a @ b, in place, for matrices; c may be float32 where a and b are half precision."""
        if not self._takes(a, b) or c.dtype not in (a.dtype, self.wide(a[:0]).dtype) or not c.flags.c_contiguous:
            super().add_matmul(c, a, b)
        else:
            self._multiply(a, b, c, beta=1.0)

    def linear(self, x: Array, weight: Array, bias: Array | None) -> Array:
        """x (..., n) @ weight (m, n)^T + bias (m) -> (..., m)."""
        x, weight = self._alike(x, weight)
        if not self._takes(x, weight):
            return super().linear(x, weight, bias)
        y = self.xp.empty((*x.shape[:-1], len(weight)), x.dtype)
        if bias is not None:
            bias = self.xp.ascontiguousarray(bias, dtype=x.dtype)
            bias = bias if bias.data.ptr % 16 == 0 else bias.copy()  # no attribute tells cuBLASLt of its alignment
        self._multiply(as_rows(x), weight.T, as_rows(y), bias=bias)
        return y

    def linear_backward_weight(self, dy: Array, x: Array) -> Array:
        """dweight = dy^T @ x, over all rows of both; float32 where they are half precision."""
        dy, x = self._alike(as_rows(dy), as_rows(x))
        if not self._takes(dy.T, x):
            return super().linear_backward_weight(dy, x)
        dweight = self.xp.empty((dy.shape[1], x.shape[1]), self.wide(x[:0]).dtype)
        self._multiply(dy.T, x, dweight)
        return dweight

    def linear_backward_bias(self, dy: Array) -> Array:
        """The sum over all rows, as wide as it is computed: (n,)."""
        if not claimed(dy):
            return super().linear_backward_bias(dy)
        return self.column_sums(as_rows(self.contiguous(dy)), wide_dtype(dy.dtype))

    # --- what they have in common ---------------------------------------------------------------

    def _takes(self, a: Array, b: Array) -> bool:
        return a.dtype == b.dtype and a.dtype.name in TYPES and a.size > 0 and b.size > 0

    def _alike(self, a: Array, b: Array) -> tuple[Array, Array]:
        """Both in the dtype that their product has."""
        if a.dtype == b.dtype:
            return a, b
        dtype = self.xp.result_type(a, b)
        return a.astype(dtype, copy=False), b.astype(dtype, copy=False)

    def _leading(self, a: Array, b: Array) -> tuple[int, ...]:
        """The axes before those of the matrices, broadcast."""
        return tuple(self.xp.broadcast_shapes(a.shape[:-2], b.shape[:-2]))

    def _stack(self, x: Array, leading: tuple[int, ...]) -> Array:
        """x (..., m, n) -> (s, m, n): a view where the leading axes have one stride between them, else a copy."""
        return self.xp.broadcast_to(x, (*leading, *x.shape[-2:])).reshape(-1, *x.shape[-2:])

    def _multiply(self, a: Array, b: Array, d: Array, beta: float = 0.0, bias: Array | None = None) -> None:
        """d = a @ b + beta d, plus bias on every row; (m, k), (k, n), (m, n), or stacks of them (s, ...)."""
        a, b = self._readable(a), self._readable(b)
        (left, turn_left), (right, turn_right), (result, _) = by_columns(b), by_columns(a), by_columns(d)
        product = Product(left, right, result, turn_left, turn_right, self._compute(a), bias is not None)
        if product in self.unfused:
            self._multiply(a, b, d, beta)
            d += bias
            return
        stream = self.xp.cuda.get_current_stream().ptr
        space = self._workspace(stream)
        bias_at = 0 if bias is None else bias.data.ptr
        try:
            if self.autotune and product not in self.cublaslt.plans:
                at = self.xp.empty_like(d).data.ptr  # the candidates write here
                self.cublaslt.tune(product, b.data.ptr, a.data.ptr, at, bias_at, space, stream, self._milliseconds)
            self.cublaslt.multiply(product, b.data.ptr, a.data.ptr, d.data.ptr, bias_at, beta, space, stream)
        except CublasLtError as error:
            if bias is None or error.status != NOT_SUPPORTED:
                raise
            self.unfused.add(product)  # no algorithm adds a bias to such matrices: a single row, say
            self._multiply(a, b, d, beta, bias)

    def _readable(self, x: Array) -> Array:
        """x, copied where cuBLASLt could not read it as it lies."""
        return x if packed(x) else self.xp.ascontiguousarray(x)

    def _compute(self, a: Array) -> str:
        if a.dtype.name == "float64":
            return "float64"
        return "tf32" if self.tf32 and not is_half(a.dtype) else "float32"

    def _workspace(self, stream: int) -> int:
        if stream not in self.workspaces:
            self.workspaces[stream] = self.xp.empty(WORKSPACE_BYTES, "uint8")
        return int(self.workspaces[stream].data.ptr)

    def _milliseconds(self, run: Callable[[], None]) -> float:
        """How long a run takes on the GPU, after one to warm up."""
        start, end = (self.xp.cuda.Event() for _ in range(2))
        run()
        start.record()
        for _ in range(TIMED_RUNS):
            run()
        end.record()
        end.synchronize()
        return float(self.xp.cuda.get_elapsed_time(start, end)) / TIMED_RUNS


def packed(x: Array) -> bool:
    """Whether rows or columns of the matrices in x lie together in memory, and the matrices in their order."""
    m, n = x.shape[-2:]
    down, right = x.strides[-2:]
    size = x.itemsize
    rows = right == size and (m == 1 or down >= n * size)
    columns = down == size and (n == 1 or right >= m * size)
    return bool((rows or columns) and (x.ndim == 2 or x.strides[0] >= 0) and all(s % size == 0 for s in x.strides))


def by_columns(x: Array) -> tuple[Matrix, bool]:
    """What cuBLASLt, reading by columns, finds where the transpose of packed x (..., m, n) is asked for.

    Rows of x that lie together are the columns of its transpose already. Where its columns do, the memory is x itself
    by columns, and has to be turned: True.
    """
    m, n = x.shape[-2:]
    down, right = (stride // x.itemsize for stride in x.strides[-2:])
    batch, stride = (x.shape[0], x.strides[0] // x.itemsize) if x.ndim == 3 else (1, 0)
    at = x.data.ptr
    alignment = min(at & -at, 256)
    if right == 1 and (m == 1 or down >= n):
        return Matrix(x.dtype.name, n, m, max(down, n), batch, stride, alignment), False
    return Matrix(x.dtype.name, m, n, max(right, m), batch, stride, alignment), True
