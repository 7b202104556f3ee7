"""cuBLASLt itself, which makes handles and descriptors without a GPU, and a stand-in for the calls that need one."""

import ctypes
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tensorgrad.backend.cupy import cublaslt
from tensorgrad.backend.cupy.cublaslt import CublasLt, CublasLtError, Matrix, Product
from tensorgrad.backend.cupy.tuned import TunedAlgorithms

try:
    from cuda import pathfinder

    pathfinder.load_nvidia_dynamic_lib("cublasLt")
except Exception as error:
    MISSING = f"cuBLASLt is not here: {type(error).__name__}"
else:
    MISSING = ""
needs_cublaslt = pytest.mark.skipif(bool(MISSING), reason=MISSING)

B, T, C, V = 4, 1024, 768, 50304  # the products of GPT-2 124M, as the model asks for them


def matrix(dtype: str, rows: int, cols: int, ld: int | None = None, **more: int) -> Matrix:
    return Matrix(dtype, rows, cols, ld or rows, **more)


def products(dtype: str, compute: str) -> dict[str, Product]:
    """By the name of the layer: forward, gradient of the input, gradient of the weight, and stacks of heads."""
    wide = "float32" if dtype in ("float16", "bfloat16") else dtype
    found = {}
    for name, n_in, n_out in (("c_attn", C, 3 * C), ("c_proj", C, C), ("c_fc", C, 4 * C), ("head", C, V)):
        x, y = matrix(dtype, n_in, B * T), matrix(dtype, n_out, B * T)
        weight = matrix(dtype, n_in, n_out)
        found[f"{name} forward"] = Product(weight, x, y, True, False, compute, "" if name == "head" else "bias")
        found[f"{name} dx"] = Product(weight, y, x, False, False, compute)
        found[f"{name} dweight"] = Product(x, y, weight._replace(dtype=wide), False, True, compute)
    weight, x, y = matrix(dtype, C, 4 * C), matrix(dtype, C, B * T), matrix(dtype, 4 * C, B * T)
    found["c_fc and GELU"] = Product(weight, x, y, True, False, compute, "bias_gelu")
    found["c_proj dx and GELU"] = Product(matrix(dtype, 4 * C, C), x, y, False, False, compute, "dgelu")
    heads = matrix(dtype, 64, T, 3 * C, batch=12, stride=64)  # of one sequence, inside its projection
    found["scores"] = Product(heads, heads, matrix(dtype, T, T, batch=12, stride=T * T), True, False, compute)
    found["odd address"] = Product(matrix(dtype, 3, 5, 7, alignment=4), x, y, False, False, compute)
    return found


DTYPES = [
    ("float32", "float32"),
    ("float32", "tf32"),
    ("float64", "float64"),
    ("float16", "float32"),
    ("bfloat16", "float32"),
]


@needs_cublaslt
@pytest.mark.parametrize(("dtype", "compute"), DTYPES)
def test_descriptors_have_the_given_attributes(dtype: str, compute: str) -> None:
    library = cublaslt.load()
    assert library.version() > 120000
    for product in products(dtype, compute).values():
        plan, get = library.describe(product), library.get
        assert (
            get(plan.operation, "MatmulDesc", cublaslt.COMPUTE_TYPE)
            == {"float32": 68, "tf32": 77, "float64": 70}[compute]
        )
        assert get(plan.operation, "MatmulDesc", cublaslt.SCALE_TYPE) == (1 if compute == "float64" else 0)
        assert get(plan.operation, "MatmulDesc", cublaslt.TRANSA) == product.transpose_a
        assert get(plan.operation, "MatmulDesc", cublaslt.TRANSB) == product.transpose_b
        wanted = {"": 1, "bias": 4, "bias_gelu": 164, "dgelu": 192}[product.epilogue]  # of cublasLt.h
        assert get(plan.operation, "MatmulDesc", cublaslt.EPILOGUE) == wanted
        library.set(plan.operation, "MatmulDesc", cublaslt.AUX_POINTER, 0x7F0012345500)
        assert get(plan.operation, "MatmulDesc", cublaslt.AUX_POINTER) == 0x7F0012345500
        assert get(plan.operation, "MatmulDesc", cublaslt.AUX_LD) == (product.d.ld if product.aux else 0)
        library.set(plan.operation, "MatmulDesc", cublaslt.BIAS_POINTER, 0x7F0012345600)
        assert get(plan.operation, "MatmulDesc", cublaslt.BIAS_POINTER) == 0x7F0012345600
        if product.bias:
            wanted = cublaslt.TYPES[dtype]
            assert get(plan.operation, "MatmulDesc", cublaslt.BIAS_DATA_TYPE) == wanted
        for layout, m in zip((plan.a, plan.b, plan.d), product[:3], strict=True):
            names = ("TYPE", "ORDER", "ROWS", "COLS", "LD", "BATCH_COUNT", "STRIDED_BATCH_OFFSET")
            read = [get(layout, "MatrixLayout", getattr(cublaslt, name)) for name in names]
            assert read == [cublaslt.TYPES[m.dtype], 0, m.rows, m.cols, m.ld, m.batch, m.stride]


@needs_cublaslt
def test_preferences_have_the_given_attributes() -> None:
    library = cublaslt.load()
    a, b, d = (matrix("float32", 4, 4, alignment=n) for n in (4, 16, 256))
    preference = library.preference(Product(a, b, d, False, False, "float32"))
    read = [library.get(preference, "MatmulPreference", attribute) for attribute in cublaslt.MIN_ALIGNMENT]
    assert read == [4, 16, 256, 256]
    assert library.get(preference, "MatmulPreference", cublaslt.MAX_WORKSPACE_BYTES) == 32 << 20
    assert library.get(preference, "MatmulPreference", cublaslt.REDUCTION_SCHEME_MASK) == 2


@needs_cublaslt
def test_an_error_names_the_call_and_the_status() -> None:
    library = cublaslt.load()
    with pytest.raises(CublasLtError, match=r"cublasLtMatmulDescSetAttribute: CUBLAS_STATUS_INVALID_VALUE \(7\)"):
        library.set(
            library.describe(products("float32", "float32")["scores"]).operation, "MatmulDesc", (999, ctypes.c_int32), 1
        )


def test_a_missing_library(monkeypatch: pytest.MonkeyPatch) -> None:
    class NotFound(RuntimeError):
        pass

    def fail(name: str) -> Any:
        raise NotFound(f"no lib{name}.so\nsearched in many places")

    fake = SimpleNamespace(load_nvidia_dynamic_lib=fail, DynamicLibNotFoundError=NotFound)
    monkeypatch.setitem(__import__("sys").modules, "cuda", SimpleNamespace(pathfinder=fake))
    with pytest.raises(
        CublasLtError, match=r"^libcublasLt is not found \(no libcublasLt.so\): pip install nvidia-cublas$"
    ):
        cublaslt.load()


def test_an_installed_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = SimpleNamespace(
        load_nvidia_dynamic_lib=lambda name: SimpleNamespace(abs_path=f"lib{name}"), DynamicLibNotFoundError=OSError
    )
    monkeypatch.setitem(__import__("sys").modules, "cuda", SimpleNamespace(pathfinder=fake))
    library = Recorder()
    monkeypatch.setattr(ctypes, "CDLL", lambda path: library if path == "libcublasLt" else None)
    assert cublaslt.load().library is library and cublaslt.load().tuned is None
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    tuned = cublaslt.load("a card").tuned
    assert tuned is not None and (tuned.card, tuned.version) == ("a card", 130100)
    assert tuned.path == tmp_path / "tensorgrad" / "kernels" / "products-a-card.json"


# --- running, with a library that only records calls ------------------------------------------------------


class Call:
    """One function of the library."""

    argtypes: list[Any]

    def __init__(self, name: str, owner: "Recorder") -> None:
        self.name, self.owner = name, owner

    def __call__(self, *arguments: Any) -> Any:
        # ctypes would take more, and pass what no type is declared for as 32 bits: half of a stream's address
        assert len(arguments) == len(self.argtypes), self.name
        if self.name == "GetStatusName":
            return b"CUBLAS_STATUS_%d" % arguments[0]
        if self.name == "GetVersion":
            return 130100
        if self.name.endswith("Create"):
            self.owner.made += 1
            arguments[0]._obj.value = self.owner.made
        if self.name == "MatmulAlgoGetHeuristic":
            count, results, found = arguments[7:]
            for i in range(min(count, self.owner.candidates)):
                results[i].algo[0], results[i].state = i + 1, self.owner.state
            found._obj.value = min(count, self.owner.candidates)
        if self.name == "Matmul":
            self.owner.ran.append((arguments, arguments[12]._obj.algo[0]))
        self.owner.calls.append((self.name, arguments))
        return self.owner.status.get(self.name, 0)


class Recorder:
    """A stand-in for `libcublasLt`: numbers the objects that it creates, and proposes algorithms 1, 2, 3 ..."""

    def __init__(self) -> None:
        self.made, self.candidates, self.state = 0, 3, 0
        self.calls: list[Any] = []
        self.ran: list[Any] = []
        self.status: dict[str, int] = {}

    def __getattr__(self, name: str) -> Any:
        call = Call(name.removeprefix("cublasLt"), self)
        setattr(self, name, call)
        return call

    def count(self, name: str) -> int:
        return sum(called == name for called, _ in self.calls)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


SMALL = Product(matrix("float32", 2, 3), matrix("float32", 3, 4), matrix("float32", 2, 4), False, False, "float32")


def test_a_product_is_planned_once_and_run_with_the_given_addresses(recorder: Recorder) -> None:
    library = CublasLt(recorder)
    for beta in (0.0, 1.0):
        library.multiply(SMALL, 1000, 2000, 3000, 0, beta, 4000, 2**40)
    assert recorder.count("MatmulAlgoGetHeuristic") == 1 and recorder.count("MatrixLayoutCreate") == 3
    assert recorder.count("MatmulPreferenceCreate") == recorder.count("MatmulPreferenceDestroy") == 1
    for (arguments, algorithm), beta in zip(recorder.ran, (0.0, 1.0), strict=True):
        handle, operation, alpha, a, layout_a, b, layout_b, given_beta, c, layout_c, d, layout_d = arguments[:12]
        assert (a, b, c, d, algorithm) == (1000, 2000, 3000, 3000, 1)
        assert (alpha._obj.value, given_beta._obj.value) == (1.0, beta)
        assert isinstance(alpha._obj, ctypes.c_float)
        assert arguments[13:] == (4000, cublaslt.WORKSPACE_BYTES, 2**40)
        assert handle.value and layout_c is layout_d
        assert len({handle.value, operation.value, layout_a.value, layout_b.value, layout_d.value}) == 5


def test_float64_is_scaled_by_doubles(recorder: Recorder) -> None:
    double = SMALL._replace(compute="float64")
    CublasLt(recorder).multiply(double, 1, 2, 3, 0, 0.0, 4, 5)
    assert isinstance(recorder.ran[0][0][2]._obj, ctypes.c_double)


def test_the_bias_is_set_before_every_run(recorder: Recorder) -> None:
    library = CublasLt(recorder)
    for address in (64, 128):
        library.multiply(SMALL._replace(epilogue="bias"), 1, 2, 3, address, 0.0, 4, 5)
    given = [a[2]._obj.value for name, a in recorder.calls if name == "MatmulDescSetAttribute" and a[1] == 8]
    assert given == [64, 64, 128]  # and before the heuristic looks at its alignment


def test_the_aux_is_set_before_every_run_and_before_the_heuristic_looks_at_its_alignment(recorder: Recorder) -> None:
    library = CublasLt(recorder)
    for aux in (64, 128):
        library.multiply(SMALL._replace(epilogue="dgelu"), 1, 2, 3, 0, 0.0, 4, 5, aux)
    names = [name if name != "MatmulDescSetAttribute" else a[2]._obj.value for name, a in recorder.calls
             if name != "MatmulDescSetAttribute" or a[1] == 11]  # fmt: skip
    wanted = [64, "MatmulAlgoGetHeuristic", 64, "Matmul", 128, "Matmul"]
    assert [name for name in names if name in wanted] == wanted


def test_tuning_keeps_the_fastest_candidate(recorder: Recorder) -> None:
    library, times = CublasLt(recorder), iter([3.0, 1.0, 2.0])

    def stopwatch(run: Any) -> float:
        run()
        return next(times)

    library.tune(SMALL, 1, 2, 3, 0, 4, 5, stopwatch)
    library.multiply(SMALL, 1, 2, 3, 0, 0.0, 4, 5)
    assert [algorithm for _, algorithm in recorder.ran] == [1, 2, 3, 2]
    assert recorder.count("MatmulDescCreate") == 1


def test_a_candidate_that_does_not_run_is_not_chosen(recorder: Recorder) -> None:
    library, times = CublasLt(recorder), iter([5.0, 4.0])

    def stopwatch(run: Any) -> float:
        recorder.status["Matmul"] = 14 if len(recorder.ran) == 1 else 0
        run()
        return next(times)

    library.tune(SMALL, 1, 2, 3, 0, 4, 5, stopwatch)
    library.multiply(SMALL, 1, 2, 3, 0, 0.0, 4, 5)
    assert [algorithm for _, algorithm in recorder.ran] == [1, 2, 3, 3]


@pytest.mark.parametrize("refused", [False, True])
def test_what_an_earlier_run_has_tuned_is_not_timed_again(refused: bool, tmp_path: Path) -> None:
    """Unless cuBLASLt does not accept it."""
    for earlier in (True, False):
        recorder = Recorder()
        recorder.status["MatmulAlgoCheck"] = 15 * refused
        library, times = CublasLt(recorder), iter([3.0, 1.0, 2.0])
        library.tuned = TunedAlgorithms("a card", 130100, tmp_path)

        def stopwatch(run: Any, times: Any = times) -> float:
            run()
            return next(times)

        library.multiply(SMALL, 1, 2, 3, 0, 0.0, 4, 5)  # planned by the heuristic, which is forgotten
        library.tune(SMALL, 1, 2, 3, 0, 4, 5, stopwatch)
        library.multiply(SMALL, 1, 2, 3, 0, 0.0, 4, 5)
        timed = [1, 2, 3] if earlier or refused else []
        assert [algorithm for _, algorithm in recorder.ran] == [1, *timed, 2]
        assert recorder.count("MatmulDescDestroy") == 1 and len(library.plans) == 1


@pytest.mark.parametrize(("candidates", "state"), [(0, 0), (1, 15)])
def test_no_algorithm_is_an_error_that_describes_the_product(recorder: Recorder, candidates: int, state: int) -> None:
    recorder.candidates, recorder.state = candidates, state
    wanted = (
        r"^cublasLtMatmulAlgoGetHeuristic: CUBLAS_STATUS_15 \(15\) for 2x3 float32 @ 3x4 float32 -> float32 by float32$"
    )
    with pytest.raises(CublasLtError, match=wanted) as caught:
        CublasLt(recorder).multiply(SMALL, 1, 2, 3, 0, 0.0, 4, 5)
    assert caught.value.status == cublaslt.NOT_SUPPORTED


def test_errors_describe_stacks_transposes_and_biases(recorder: Recorder) -> None:
    recorder.status["Matmul"] = 13
    stack = [m._replace(batch=5, stride=100, dtype="float16") for m in SMALL[:3]]
    product = Product(*stack, True, False, "float32", "bias")
    wanted = "2x3 float16^T @ 3x4 float16 -> float16 by float32 + bias, 5 of them"
    with pytest.raises(CublasLtError, match=re.escape(f"cublasLtMatmul: CUBLAS_STATUS_13 (13) for {wanted}")):
        CublasLt(recorder).multiply(product, 1, 2, 3, 0, 0.0, 4, 5)


def test_the_cache_of_plans_drops_the_earliest(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cublaslt, "MAX_PLANS", 2)
    library = CublasLt(recorder)
    sizes = [SMALL._replace(d=matrix("float32", 2, 4, ld)) for ld in (2, 3, 4)]
    for product in sizes:
        library.multiply(product, 1, 2, 3, 0, 0.0, 4, 5)
    assert list(library.plans) == sizes[1:]
    assert recorder.count("MatmulDescDestroy") == 1 and recorder.count("MatrixLayoutDestroy") == 3


def test_attributes_and_the_version_can_be_read(recorder: Recorder) -> None:
    library = CublasLt(recorder)
    assert library.version() == 130100
    assert library.get(library.layout(SMALL.a), "MatrixLayout", cublaslt.COLS) == 0  # which the recorder leaves at 0
    name, arguments = recorder.calls[-1]
    assert (name, arguments[1], arguments[3]) == ("MatrixLayoutGetAttribute", 3, 8)
