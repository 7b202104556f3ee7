"""Matrix products by cuBLASLt, called through ctypes.

CuPy does not expose cuBLASLt. It reads transposed operands without a copy, can add to the output array, sums half
precision in float32, adds the bias while the result is in registers, and can be captured into a CUDA graph. A product
is described once, in a plan that is cached; running a plan is one call. Names and numbers are those of `cublasLt.h`.
"""

import ctypes
import math
from collections.abc import Callable
from ctypes import POINTER, byref, c_char_p, c_double, c_float, c_int, c_int32, c_int64, c_size_t, c_uint64, c_void_p
from functools import cached_property
from typing import Any, NamedTuple

from tensorgrad.backend.cupy.driver import first_line
from tensorgrad.backend.cupy.tuned import TunedAlgorithms

TYPES = {"float32": 0, "float64": 1, "float16": 2, "bfloat16": 14}  # cudaDataType
COMPUTE = {"float32": 68, "tf32": 77, "float64": 70}  # cublasComputeType: the type of the sum
# Attributes with the types of their values. Of a product:
COMPUTE_TYPE, SCALE_TYPE, TRANSA, TRANSB = ((i, c_int32) for i in (0, 1, 3, 4))
EPILOGUE, BIAS_POINTER, BIAS_DATA_TYPE = (7, c_int32), (8, c_void_p), (26, c_int32)
AUX_POINTER, AUX_LD = (11, c_void_p), (12, c_int64)
# Of a layout:
TYPE, ORDER, ROWS, COLS, LD = (0, c_int32), (1, c_int32), (2, c_uint64), (3, c_uint64), (4, c_int64)
BATCH_COUNT, STRIDED_BATCH_OFFSET = (5, c_int32), (6, c_int64)
# Of a preference:
MAX_WORKSPACE_BYTES, REDUCTION_SCHEME_MASK = (1, c_uint64), (3, c_int32)
MIN_ALIGNMENT = [(i, c_int32) for i in (5, 6, 7, 8)]  # bytes, of A, B, C and D
IN_COMPUTE_TYPE = 2  # reduction scheme: where the inner axis is split, partial sums are added in the compute type
TRANSPOSED = 1
# What is computed of a product while it is in registers. Its GELU is the approximation by tanh.
EPILOGUES = {
    "": 1,
    "bias": 4,  # d += bias
    "gelu": 32 | 128,  # aux = d, d = gelu(d)
    "bias_gelu": 32 | 128 | 4,  # d += bias first
    "dgelu": 64 | 128,  # d *= gelu'(aux)
}
NOT_SUPPORTED = 15

WORKSPACE_BYTES = 32 << 20  # NVIDIA's recommendation for Hopper
MAX_PLANS = 4096  # a key cache that grows by a token at a time needs a new plan for each token


class CublasLtError(RuntimeError):
    """A failed call of cuBLASLt; the message names the call, its status and the product."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class Matrix(NamedTuple):
    """A column-major matrix, or a stack of `batch` matrices that are `stride` elements apart."""

    dtype: str
    rows: int
    cols: int
    ld: int  # leading dimension: elements from a column to the next
    batch: int = 1
    stride: int = 0
    alignment: int = 256  # bytes that the address is a multiple of


class Product(NamedTuple):
    """d = op(a) op(b) + beta d, and an epilogue; the key of a plan.

    A bias has the rows of d, and is added to every column. An aux has the layout of d.
    """

    a: Matrix
    b: Matrix
    d: Matrix
    transpose_a: bool
    transpose_b: bool
    compute: str
    epilogue: str = ""  # of EPILOGUES

    @property
    def bias(self) -> bool:
        """Whether the epilogue reads a bias."""
        return "bias" in self.epilogue

    @property
    def aux(self) -> bool:
        """Whether the epilogue reads or writes the argument of a GELU."""
        return "gelu" in self.epilogue

    def __str__(self) -> str:
        ops = (f"{m.rows}x{m.cols} {m.dtype}{'^T' * t}" for m, t in zip(self[:2], self[3:5], strict=True))
        stack = f", {self.d.batch} of them" if self.d.batch > 1 else ""
        epilogue = f" + {self.epilogue}" if self.epilogue else ""
        return f"{' @ '.join(ops)} -> {self.d.dtype} by {self.compute}{epilogue}{stack}"


class Algorithm(ctypes.Structure):
    """A result of the heuristic: `cublasLtMatmulHeuristicResult_t`, which begins with the algorithm."""

    _fields_ = (
        ("algo", c_uint64 * 8), ("workspace", c_size_t), ("state", c_int), ("waves", c_float), ("reserved", c_int * 4),
    )  # fmt: skip


class Plan(NamedTuple):
    """A product that is ready to run: descriptors of the product and of its matrices, and the algorithm."""

    product: Product
    operation: c_void_p
    a: c_void_p
    b: c_void_p
    d: c_void_p
    algorithm: Algorithm


Stopwatch = Callable[[Callable[[], None]], float]  # returns how long a function takes, in any unit

SIGNATURES: dict[str, list[Any]] = {
    "Create": [POINTER(c_void_p)],
    "MatmulDescCreate": [POINTER(c_void_p), c_int, c_int],
    "MatrixLayoutCreate": [POINTER(c_void_p), c_int, c_uint64, c_uint64, c_int64],
    "MatmulPreferenceCreate": [POINTER(c_void_p)],
    "MatmulAlgoGetHeuristic": [*[c_void_p] * 7, c_int, c_void_p, POINTER(c_int)],
    "MatmulAlgoCheck": [c_void_p] * 8,
    "Matmul": [*[c_void_p] * 14, c_size_t, c_void_p],
}
for _kind in ("MatmulDesc", "MatrixLayout", "MatmulPreference"):
    SIGNATURES[f"{_kind}Destroy"] = [c_void_p]
    SIGNATURES[f"{_kind}SetAttribute"] = [c_void_p, c_int, c_void_p, c_size_t]
    SIGNATURES[f"{_kind}GetAttribute"] = [c_void_p, c_int, c_void_p, c_size_t, POINTER(c_size_t)]


class CublasLt:
    """A cuBLASLt handle and a cache of plans. Every method raises CublasLtError if a call of the library fails.

    tuned: the algorithms that `tune` has found in earlier runs, and where it keeps those that it finds.
    """

    def __init__(self, library: Any) -> None:
        self.library = library
        self.tuned: TunedAlgorithms | None = None
        self.plans: dict[Product, Plan] = {}
        for name, arguments in SIGNATURES.items():
            function = getattr(library, f"cublasLt{name}")
            function.argtypes, function.restype = arguments, c_int
        library.cublasLtGetStatusName.argtypes, library.cublasLtGetStatusName.restype = [c_int], c_char_p
        library.cublasLtGetVersion.argtypes, library.cublasLtGetVersion.restype = [], c_size_t

    @cached_property
    def handle(self) -> c_void_p:
        """The handle, created for the current GPU; needed to choose and run algorithms, but not for descriptors."""
        return self._create("Create")

    def version(self) -> int:
        """The version of the library: 130100 is 13.1.0."""
        return int(self.library.cublasLtGetVersion())

    def multiply(
        self, product: Product, a: int, b: int, d: int, bias: int, beta: float, workspace: int, stream: int,
        aux: int = 0,
    ) -> None:  # fmt: skip
        """Run the product on a stream, planned at the first call; all but beta are addresses."""
        plan = self.plans.get(product) or self._keep(self.plan(product, bias, aux))
        self.run(plan, a, b, d, bias, beta, workspace, stream, aux)

    def tune(
        self, product: Product, a: int, b: int, d: int, bias: int, workspace: int, stream: int, stopwatch: Stopwatch,
        aux: int = 0, count: int = 8,
    ) -> None:  # fmt: skip
        """Plan the product with the fastest of `count` candidates, as timed by the stopwatch; overwrites d.

        Without timing where the fastest is known from an earlier run.
        """
        described = self.describe(product)
        self.point(described, bias, aux)

        def time(candidate: Plan) -> float:
            try:
                return stopwatch(lambda: self.run(candidate, a, b, d, bias, 0.0, workspace, stream, aux))
            except CublasLtError:
                return math.inf  # not every candidate runs

        fastest = self._known(described)
        if fastest is None:
            candidates = [described._replace(algorithm=x) for x in self.candidates(described, count)]
            fastest = min(candidates, key=time)
            if self.tuned is not None:
                self.tuned.add(repr(product), list(fastest.algorithm.algo))
        if product in self.plans:
            self.forget(product)
        self._keep(fastest)

    def _known(self, described: Plan) -> Plan | None:
        """The plan with the algorithm that was found in an earlier run, if cuBLASLt accepts it."""
        words = None if self.tuned is None else self.tuned.find(repr(described.product))
        if words is None:
            return None
        algorithm, checked = Algorithm(algo=tuple(words)), Algorithm()
        status = self.library.cublasLtMatmulAlgoCheck(
            self.handle, described.operation, described.a, described.b, described.d, described.d, byref(algorithm),
            byref(checked),
        )  # fmt: skip
        fits = status == 0 and checked.state == 0 and checked.workspace <= WORKSPACE_BYTES
        return described._replace(algorithm=algorithm) if fits else None

    def run(
        self, plan: Plan, a: int, b: int, d: int, bias: int, beta: float, workspace: int, stream: int, aux: int = 0
    ) -> None:
        """Run a plan on a stream."""
        self.point(plan, bias, aux)
        real = c_double if plan.product.compute == "float64" else c_float
        self._call(
            "Matmul", self.handle, plan.operation, byref(real(1)), a, plan.a, b, plan.b, byref(real(beta)), d, plan.d,
            d, plan.d, byref(plan.algorithm), workspace, WORKSPACE_BYTES, stream, product=plan.product,
        )  # fmt: skip

    def point(self, plan: Plan, bias: int, aux: int) -> None:
        """Set the addresses that the epilogue uses; the heuristic looks at their alignment, too."""
        if plan.product.bias:
            self.set(plan.operation, "MatmulDesc", BIAS_POINTER, bias)
        if plan.product.aux:
            self.set(plan.operation, "MatmulDesc", AUX_POINTER, aux)

    def plan(self, product: Product, bias: int = 0, aux: int = 0) -> Plan:
        """Describe the product, and choose the first algorithm that the heuristic proposes."""
        described = self.describe(product)
        self.point(described, bias, aux)
        return described._replace(algorithm=self.candidates(described, 1)[0])

    def describe(self, product: Product) -> Plan:
        """The descriptors of a product, without an algorithm yet; this needs no GPU."""
        scale = TYPES["float64" if product.compute == "float64" else "float32"]
        operation = self._create("MatmulDescCreate", COMPUTE[product.compute], scale)
        self.set(operation, "MatmulDesc", TRANSA, TRANSPOSED * product.transpose_a)
        self.set(operation, "MatmulDesc", TRANSB, TRANSPOSED * product.transpose_b)
        if product.epilogue:
            self.set(operation, "MatmulDesc", EPILOGUE, EPILOGUES[product.epilogue])
        if product.bias:
            self.set(operation, "MatmulDesc", BIAS_DATA_TYPE, TYPES[product.d.dtype])
        if product.aux:
            self.set(operation, "MatmulDesc", AUX_LD, product.d.ld)
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
        """The limits of algorithms: the size of the workspace, and the alignment of the addresses."""
        preference = self._create("MatmulPreferenceCreate")
        self.set(preference, "MatmulPreference", MAX_WORKSPACE_BYTES, WORKSPACE_BYTES)
        self.set(preference, "MatmulPreference", REDUCTION_SCHEME_MASK, IN_COMPUTE_TYPE)
        matrices = (product.a, product.b, product.d, product.d)
        for attribute, matrix in zip(MIN_ALIGNMENT, matrices, strict=True):
            self.set(preference, "MatmulPreference", attribute, matrix.alignment)
        return preference

    def candidates(self, plan: Plan, count: int) -> list[Algorithm]:
        """1 to `count` algorithms for a described product, the one expected to be the fastest first."""
        results, found = (Algorithm * count)(), c_int()
        preference = self.preference(plan.product)
        self._call(
            "MatmulAlgoGetHeuristic", self.handle, plan.operation, plan.a, plan.b, plan.d, plan.d, preference, count,
            results, byref(found), product=plan.product,
        )  # fmt: skip
        self._call("MatmulPreferenceDestroy", preference)
        usable = [result for result in results[: found.value] if result.state == 0]
        if not usable:
            raise self._error("MatmulAlgoGetHeuristic", NOT_SUPPORTED, plan.product)
        return usable

    def _keep(self, plan: Plan) -> Plan:
        if len(self.plans) >= MAX_PLANS:
            self.forget(next(iter(self.plans)))  # the least recently planned
        self.plans[plan.product] = plan
        return plan

    def forget(self, product: Product) -> None:
        """Destroy the descriptors of a plan."""
        plan = self.plans.pop(product)
        self._call("MatmulDescDestroy", plan.operation)
        for layout in (plan.a, plan.b, plan.d):
            self._call("MatrixLayoutDestroy", layout)

    def set(self, descriptor: c_void_p, kind: str, attribute: tuple[int, Any], value: int) -> None:
        """Set an attribute; kind: MatmulDesc, MatrixLayout or MatmulPreference."""
        number, ctype = attribute
        self._call(f"{kind}SetAttribute", descriptor, number, byref(ctype(value)), ctypes.sizeof(ctype))

    def get(self, descriptor: c_void_p, kind: str, attribute: tuple[int, Any]) -> int:
        """The value of an attribute."""
        number, ctype = attribute
        value, size = ctype(), c_size_t()
        self._call(f"{kind}GetAttribute", descriptor, number, byref(value), ctypes.sizeof(ctype), byref(size))
        return int(value.value or 0)

    def _create(self, function: str, *arguments: Any) -> c_void_p:
        descriptor = c_void_p()
        self._call(function, byref(descriptor), *arguments)
        return descriptor

    def _call(self, function: str, *arguments: Any, product: Product | None = None) -> None:
        status = getattr(self.library, f"cublasLt{function}")(*arguments)
        if status != 0:
            raise self._error(function, status, product)

    def _error(self, function: str, status: int, product: Product | None) -> CublasLtError:
        name = self.library.cublasLtGetStatusName(status).decode()
        message = f"cublasLt{function}: {name} ({status})" + (f" for {product}" if product else "")
        return CublasLtError(message, status)


def load(card: str = "") -> CublasLt:
    """cuBLASLt from NVIDIA's packages or from the system. Raises CublasLtError if it cannot be loaded.

    card: what tells the GPU from others, on which other algorithms are the fastest; "" keeps none on disk.
    """
    from cuda import pathfinder

    try:
        found = pathfinder.load_nvidia_dynamic_lib("cublasLt")
    except (pathfinder.DynamicLibNotFoundError, RuntimeError) as error:
        raise CublasLtError(f"libcublasLt is not found ({first_line(error)}): pip install nvidia-cublas") from error
    library = CublasLt(ctypes.CDLL(found.abs_path))
    library.tuned = TunedAlgorithms(card, library.version()) if card else None
    return library
