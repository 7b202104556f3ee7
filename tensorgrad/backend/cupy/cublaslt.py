"""cuBLASLt through ctypes: one matrix product, with every choice in our hands.

CuPy does not expose it. It reads transposed operands as they lie, adds into what is there, adds half precision up in
float32 and the bias while the result is in registers, and can be captured into a CUDA graph. A product is described
once, in a plan that is kept; running a plan is one call. Names and numbers are those of `cublasLt.h`.
"""

import ctypes
from collections.abc import Callable
from ctypes import POINTER, byref, c_char_p, c_double, c_float, c_int, c_int32, c_int64, c_size_t, c_uint64, c_void_p
from functools import cached_property
from typing import Any, NamedTuple

TYPES = {"float32": 0, "float64": 1, "float16": 2, "bfloat16": 14}  # cudaDataType
COMPUTE = {"float32": 68, "tf32": 77, "float64": 70}  # cublasComputeType: what products are added up in
# attributes, each with the type of its value: of a product
COMPUTE_TYPE, SCALE_TYPE, TRANSA, TRANSB = ((i, c_int32) for i in (0, 1, 3, 4))
EPILOGUE, BIAS_POINTER, BIAS_DATA_TYPE = (7, c_int32), (8, c_void_p), (26, c_int32)
# of a layout
TYPE, ORDER, ROWS, COLS, LD = (0, c_int32), (1, c_int32), (2, c_uint64), (3, c_uint64), (4, c_int64)
BATCH_COUNT, STRIDED_BATCH_OFFSET = (5, c_int32), (6, c_int64)
# of a preference
MAX_WORKSPACE_BYTES, REDUCTION_SCHEME_MASK = (1, c_uint64), (3, c_int32)
MIN_ALIGNMENT = [(i, c_int32) for i in (5, 6, 7, 8)]  # bytes, of A, B, C and D
IN_COMPUTE_TYPE = 2  # reduction scheme: where the inner axis is split, parts are added in float32 and rounded once
TRANSPOSED = 1
WITH_BIAS = 4  # epilogue
NOT_SUPPORTED = 15

WORKSPACE_BYTES = 32 << 20  # what NVIDIA advises for Hopper
MOST_PLANS = 4096  # a cache that grows by a token at a time asks for a plan a token


class CublasLtError(RuntimeError):
    """A call of cuBLASLt that failed; the message names the call, its status and the product."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class Matrix(NamedTuple):
    """Memory as cuBLASLt reads it: by columns. A stack of them has `batch` matrices, each `stride` elements further."""

    dtype: str
    rows: int
    cols: int
    ld: int  # elements from a column to the next
    batch: int = 1
    stride: int = 0
    alignment: int = 256  # bytes that the address is a multiple of


class Product(NamedTuple):
    """d = op(a) op(b) + beta d, plus a bias (rows of d) on every column: all that a plan depends on."""

    a: Matrix
    b: Matrix
    d: Matrix
    transpose_a: bool
    transpose_b: bool
    compute: str
    bias: bool = False

    def __str__(self) -> str:
        ops = (f"{m.rows}x{m.cols} {m.dtype}{'^T' * t}" for m, t in zip(self[:2], self[3:5], strict=True))
        stack = f", {self.d.batch} of them" if self.d.batch > 1 else ""
        return f"{' @ '.join(ops)} -> {self.d.dtype} by {self.compute}{' + bias' * self.bias}{stack}"


class Algorithm(ctypes.Structure):
    """What the heuristic proposes: `cublasLtMatmulHeuristicResult_t`, which begins with the algorithm."""

    _fields_ = (
        ("algo", c_uint64 * 8), ("workspace", c_size_t), ("state", c_int), ("waves", c_float), ("reserved", c_int * 4),
    )  # fmt: skip


class Plan(NamedTuple):
    """A product ready to run: descriptors of the product and of its matrices, and the algorithm."""

    product: Product
    operation: c_void_p
    a: c_void_p
    b: c_void_p
    d: c_void_p
    algorithm: Algorithm


# How long a run takes, in any unit.
Stopwatch = Callable[[Callable[[], None]], float]

SIGNATURES: dict[str, list[Any]] = {
    "Create": [POINTER(c_void_p)],
    "MatmulDescCreate": [POINTER(c_void_p), c_int, c_int],
    "MatmulDescDestroy": [c_void_p],
    "MatmulDescSetAttribute": [c_void_p, c_int, c_void_p, c_size_t],
    "MatmulDescGetAttribute": [c_void_p, c_int, c_void_p, c_size_t, POINTER(c_size_t)],
    "MatrixLayoutCreate": [POINTER(c_void_p), c_int, c_uint64, c_uint64, c_int64],
    "MatrixLayoutDestroy": [c_void_p],
    "MatrixLayoutSetAttribute": [c_void_p, c_int, c_void_p, c_size_t],
    "MatrixLayoutGetAttribute": [c_void_p, c_int, c_void_p, c_size_t, POINTER(c_size_t)],
    "MatmulPreferenceCreate": [POINTER(c_void_p)],
    "MatmulPreferenceDestroy": [c_void_p],
    "MatmulPreferenceSetAttribute": [c_void_p, c_int, c_void_p, c_size_t],
    "MatmulPreferenceGetAttribute": [c_void_p, c_int, c_void_p, c_size_t, POINTER(c_size_t)],
    "MatmulAlgoGetHeuristic": [*[c_void_p] * 7, c_int, c_void_p, POINTER(c_int)],
    "Matmul": [*[c_void_p] * 14, c_size_t, c_void_p],
}


class CublasLt:
    """A handle of the library, and the plans made with it so far.

    library: `libcublasLt`, loaded. Every method raises CublasLtError where a call of it fails.
    """

    def __init__(self, library: Any) -> None:
        self.library = library
        self.plans: dict[Product, Plan] = {}
        for name, arguments in SIGNATURES.items():
            function = getattr(library, f"cublasLt{name}")
            function.argtypes, function.restype = arguments, c_int
        library.cublasLtGetStatusName.argtypes, library.cublasLtGetStatusName.restype = [c_int], c_char_p
        library.cublasLtGetVersion.argtypes, library.cublasLtGetVersion.restype = [], c_size_t

    @cached_property
    def handle(self) -> c_void_p:
        """What algorithms are chosen and run with; made for the GPU that is current. Descriptors need none."""
        return self._create("Create")

    def version(self) -> int:
        """The version of the library: 130100 is 13.1.0."""
        return int(self.library.cublasLtGetVersion())

    # --- running --------------------------------------------------------------------------------

    def multiply(
        self, product: Product, a: int, b: int, d: int, bias: int, beta: float, workspace: int, stream: int
    ) -> None:  # fmt: skip
        """Run the product on a stream; a, b, d, bias and the workspace, of WORKSPACE_BYTES, are addresses.

        A product that is new is planned first. Raises CublasLtError.
        """
        plan = self.plans.get(product) or self._keep(self.plan(product))
        self.run(plan, a, b, d, bias, beta, workspace, stream)

    def tune(
        self, product: Product, a: int, b: int, d: int, bias: int, workspace: int, stream: int, stopwatch: Stopwatch,
        count: int = 8,
    ) -> None:  # fmt: skip
        """Plan the product with the fastest of the heuristic's candidates, by the stopwatch; d is overwritten."""
        described = self.describe(product)

        def time(candidate: Plan) -> float:
            return stopwatch(lambda: self.run(candidate, a, b, d, bias, 0.0, workspace, stream))

        self._keep(min((described._replace(algorithm=x) for x in self.candidates(described, count)), key=time))

    def run(
        self, plan: Plan, a: int, b: int, d: int, bias: int, beta: float, workspace: int, stream: int
    ) -> None:  # fmt: skip
        """Run a plan on a stream."""
        if plan.product.bias:
            self.set(plan.operation, "MatmulDesc", BIAS_POINTER, bias)
        real = c_double if plan.product.compute == "float64" else c_float
        self._call(
            "Matmul", self.handle, plan.operation, byref(real(1)), a, plan.a, b, plan.b, byref(real(beta)), d, plan.d,
            d, plan.d, byref(plan.algorithm), workspace, WORKSPACE_BYTES, stream, about=plan.product,
        )  # fmt: skip

    # --- planning -------------------------------------------------------------------------------

    def plan(self, product: Product) -> Plan:
        """Describe the product, and take the algorithm that the heuristic thinks the fastest."""
        described = self.describe(product)
        return described._replace(algorithm=self.candidates(described, 1)[0])

    def describe(self, product: Product) -> Plan:
        """The descriptors of a product, without an algorithm yet; this needs no GPU."""
        scale = TYPES["float64" if product.compute == "float64" else "float32"]
        operation = self._create("MatmulDescCreate", COMPUTE[product.compute], scale)
        self.set(operation, "MatmulDesc", TRANSA, TRANSPOSED * product.transpose_a)
        self.set(operation, "MatmulDesc", TRANSB, TRANSPOSED * product.transpose_b)
        if product.bias:
            self.set(operation, "MatmulDesc", EPILOGUE, WITH_BIAS)
            self.set(operation, "MatmulDesc", BIAS_DATA_TYPE, TYPES[product.d.dtype])
        a, b, d = (self.layout(matrix) for matrix in (product.a, product.b, product.d))
        return Plan(product, operation, a, b, d, Algorithm())

    def layout(self, matrix: Matrix) -> c_void_p:
        """The descriptor of a matrix, or of a stack."""
        layout = self._create("MatrixLayoutCreate", TYPES[matrix.dtype], matrix.rows, matrix.cols, matrix.ld)
        if matrix.batch > 1:
            self.set(layout, "MatrixLayout", BATCH_COUNT, matrix.batch)
            self.set(layout, "MatrixLayout", STRIDED_BATCH_OFFSET, matrix.stride)
        return layout

    def preference(self, product: Product) -> c_void_p:
        """What algorithms may ask for: the workspace there is, and addresses as they are aligned."""
        preference = self._create("MatmulPreferenceCreate")
        self.set(preference, "MatmulPreference", MAX_WORKSPACE_BYTES, WORKSPACE_BYTES)
        self.set(preference, "MatmulPreference", REDUCTION_SCHEME_MASK, IN_COMPUTE_TYPE)
        matrices = (product.a, product.b, product.d, product.d)
        for attribute, matrix in zip(MIN_ALIGNMENT, matrices, strict=True):
            self.set(preference, "MatmulPreference", attribute, matrix.alignment)
        return preference

    def candidates(self, plan: Plan, count: int) -> list[Algorithm]:
        """At most `count` algorithms for a described product, the most promising first; at least one."""
        results, found = (Algorithm * count)(), c_int()
        preference = self.preference(plan.product)
        self._call(
            "MatmulAlgoGetHeuristic", self.handle, plan.operation, plan.a, plan.b, plan.d, plan.d, preference, count,
            results, byref(found), about=plan.product,
        )  # fmt: skip
        self._call("MatmulPreferenceDestroy", preference)
        able = [result for result in results[: found.value] if result.state == 0]
        if not able:
            raise self._error("MatmulAlgoGetHeuristic", NOT_SUPPORTED, plan.product)
        return able

    def _keep(self, plan: Plan) -> Plan:
        if len(self.plans) >= MOST_PLANS:
            self.forget(next(iter(self.plans)))  # the oldest
        self.plans[plan.product] = plan
        return plan

    def forget(self, product: Product) -> None:
        """Give the descriptors of a plan back."""
        plan = self.plans.pop(product)
        self._call("MatmulDescDestroy", plan.operation)
        for layout in (plan.a, plan.b, plan.d):
            self._call("MatrixLayoutDestroy", layout)

    # --- calls ----------------------------------------------------------------------------------

    def set(self, descriptor: c_void_p, kind: str, attribute: tuple[int, Any], value: int) -> None:
        """Write an attribute; kind: MatmulDesc, MatrixLayout or MatmulPreference."""
        number, ctype = attribute
        self._call(f"{kind}SetAttribute", descriptor, number, byref(ctype(value)), ctypes.sizeof(ctype))

    def get(self, descriptor: c_void_p, kind: str, attribute: tuple[int, Any]) -> int:
        """Read an attribute back."""
        number, ctype = attribute
        value, size = ctype(), c_size_t()
        self._call(f"{kind}GetAttribute", descriptor, number, byref(value), ctypes.sizeof(ctype), byref(size))
        return int(value.value or 0)

    def _create(self, function: str, *arguments: Any) -> c_void_p:
        made = c_void_p()
        self._call(function, byref(made), *arguments)
        return made

    def _call(self, function: str, *arguments: Any, about: Product | None = None) -> None:
        status = getattr(self.library, f"cublasLt{function}")(*arguments)
        if status != 0:
            raise self._error(function, status, about)

    def _error(self, function: str, status: int, about: Product | None) -> CublasLtError:
        name = self.library.cublasLtGetStatusName(status).decode()
        message = f"cublasLt{function}: {name} ({status})" + (f" for {about}" if about else "")
        return CublasLtError(message, status)


def load() -> CublasLt:
    """cuBLASLt where NVIDIA's packages or the system have it. Raises CublasLtError where it cannot be loaded."""
    from cuda import pathfinder

    try:
        found = pathfinder.load_nvidia_dynamic_lib("cublasLt")
    except (pathfinder.DynamicLibNotFoundError, RuntimeError) as error:
        raise CublasLtError(f"libcublasLt is not found ({_line(error)}): pip install nvidia-cublas") from error
    return CublasLt(ctypes.CDLL(found.abs_path))


def _line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
