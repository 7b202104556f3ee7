"""The launcher: every launch is checked, kernels are compiled once, and a bad cache is never an error."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from emulated_cuda import RecordingLauncher
from fake_cupy import FakeCupy, fake

from tensorgrad.backend.cupy import launcher, nvrtc, signature
from tensorgrad.backend.cupy.launcher import CudaLauncher

SOURCE = """
#include "common.cuh"
// extern "C" __global__ void commented_out(int x) {}
extern "C" __global__ void __launch_bounds__(64) scale(const T* __restrict__ x, T *y, long long n, float by) {
    const long long i = blockIdx.x * 64ll + threadIdx.x;
    if (i < n) y[i] = narrow<T>(widen(x[i]) * by);
}
extern "C" __global__ void nothing() {}
"""
HALF = {"T": "__half"}


@pytest.fixture(autouse=True)
def source(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A .cu file, and an empty cache."""
    path = tmp_path / "scale.cu"
    path.write_text(SOURCE)
    monkeypatch.setattr(signature, "path_of", lambda name: tmp_path / f"{name}.cu")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    launcher.read.cache_clear()
    yield path
    launcher.read.cache_clear()


def arguments(**changes: Any) -> list[Any]:
    x = np.ones(100, np.float16)
    return list(({"x": x, "y": x.copy(), "n": np.int64(100), "by": np.float32(2)} | changes).values())


def test_a_launch_is_recorded() -> None:
    recorder = RecordingLauncher()
    recorder.launch("scale", "scale", (2,), (64,), arguments(x=None), 7, HALF)
    (launch,) = recorder.launches
    assert (launch.grid, launch.block, launch.shared) == ((2, 1, 1), (64, 1, 1), 7)
    assert launch.dtypes == (None, "float16", "int64", "float32")
    recorder.launch("scale", "nothing", (1,), (1,), (), 0, HALF)
    assert len(recorder.launches) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n": 100}, "kernel scale: n is 100, a NumPy int64 is needed"),
        ({"n": np.int32(100)}, r"kernel scale: n is np.int32\(100\), a NumPy int64 is needed"),
        ({"by": 2.0}, "kernel scale: by is 2.0, a NumPy float32 is needed"),
        ({"by": np.float64(2)}, r"kernel scale: by is np.float64\(2.0\), a NumPy float32 is needed"),
        ({"by": None}, "kernel scale: by is None, a NumPy float32 is needed"),
        ({"by": np.ones(1, np.float32)}, r"kernel scale: by is array.*, a NumPy float32 is needed"),
        ({"x": np.ones(100, np.float32)}, "kernel scale: x has dtype float32, not float16"),
        ({"x": np.float16(1)}, r"kernel scale: x is np.float16\(1.0\), an array of float16 is needed"),
        ({"x": 140234}, "kernel scale: x is 140234, an array of float16 is needed"),
        ({"y": np.ones((10, 20), np.float16)[:, ::2]}, r"kernel scale: y \(10, 10\) is not contiguous"),
        ({"more": np.int32(1)}, r"kernel scale: 5 arguments for 4 parameters \(x, y, n, by\)"),
    ],
)
def test_arguments_that_do_not_match(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=f"^{message}$"):
        RecordingLauncher().launch("scale", "scale", (2,), (64,), arguments(**changes), 0, HALF)


def test_only_kernels_with_strides_accept_strided_arrays(source: Path) -> None:
    source.write_text('extern "C" __global__ void copy(const float* x, long long x_stride_b, float* y) {}')
    gaps, whole = np.ones((10, 20), np.float32)[:, ::2], np.ones((10, 10), np.float32)
    RecordingLauncher().launch("scale", "copy", (1,), (1,), (gaps, np.int64(20), whole))
    with pytest.raises(TypeError, match="kernel copy: y .* is not contiguous"):
        RecordingLauncher().launch("scale", "copy", (1,), (1,), (whole, np.int64(20), gaps))


@pytest.mark.parametrize(
    ("kernel", "grid", "block", "message"),
    [
        ("scales", (1,), (1,), "kernel scales: scale.cu does not define it; it defines scale, nothing"),
        ("commented_out", (1,), (1,), "kernel commented_out: scale.cu does not define it; it defines scale, nothing"),
        ("scale", (1,), (2000,), r"kernel scale: block \(2000,\) is not 1 to 1024 threads"),
        ("scale", (1,), (32, 64), r"kernel scale: block \(32, 64\) is not 1 to 1024 threads"),
        ("scale", (0,), (64,), r"kernel scale: grid \(0,\) is not 1 to .* blocks"),
        ("scale", (1, 70000), (64,), r"kernel scale: grid \(1, 70000\) is not 1 to .* blocks"),
    ],
)
def test_invalid_launches(kernel: str, grid: Any, block: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        RecordingLauncher().launch("scale", kernel, grid, block, arguments(), 0, HALF)


def test_a_parameter_that_cannot_be_checked(source: Path) -> None:
    source.write_text('extern "C" __global__ void odd(float** x) {}')
    with pytest.raises(TypeError, match="^kernel odd: a parameter declared as 'float[*][*] x' cannot be checked$"):
        RecordingLauncher().launch("scale", "odd", (1,), (1,), (None,))


def test_c_types() -> None:
    text = """using Real = Wide<T>; using Index = long long; using Number = T;
    extern "C" __global__ void k(Real eps, const Real* mean, Index n, Number* y) {}"""
    for t, wide in (("__half", "float32"), ("double", "float64")):
        dtypes = [parameter.dtype for parameter in signature.signatures(text, (("T", t),))["k"]]
        assert dtypes == [wide, wide, "int64", signature.DTYPES[t]]


# --- compiling ------------------------------------------------------------------------------------


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Records the compilations, without a compiler."""
    sources: list[str] = []

    def compile_cubin(name: str, source: str, options: list[str]) -> tuple[bytes, str]:
        sources.append(source)
        return f"{name} {' '.join(options)} {source}".encode(), ""

    monkeypatch.setattr(nvrtc, "compile_cubin", compile_cubin)
    monkeypatch.setattr(nvrtc, "version", lambda: (13, 0))
    monkeypatch.setattr(nvrtc, "architectures", lambda: (75, 80, 89, 90, 120))
    monkeypatch.setattr(nvrtc, "include_folders", lambda: ("/cuda/include",))
    return sources


FLOAT = (("T", "float"),)


def test_a_kernel_is_compiled_once_for_all_that_it_depends_on(
    source: Path, compiled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = launcher.cached_build("scale", "sm_80", FLOAT)
    assert launcher.cached_build("scale", "sm_80", FLOAT) == first
    assert len(compiled) == 1
    launcher.cached_build("scale", "sm_90", FLOAT)
    launcher.cached_build("scale", "sm_80", (("T", "__half"),))
    monkeypatch.setattr(nvrtc, "version", lambda: (13, 1))
    launcher.cached_build("scale", "sm_80", FLOAT)
    assert len(compiled) == 4
    source.write_text(SOURCE + "\n")
    launcher.read.cache_clear()
    launcher.cached_build("scale", "sm_80", FLOAT)
    assert len(compiled) == 5
    assert sorted(path.suffix for path in launcher.cache_folder().iterdir()) == [".cubin"] * 5  # nothing half-written


def test_machine_code_can_be_carried_to_another_machine(
    compiled: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Where this package and CUDA are installed elsewhere."""
    for i in range(2):
        folder = tmp_path / f"machine {i}"
        folder.mkdir()
        (folder / "scale.cu").write_text(SOURCE)
        monkeypatch.setattr(signature, "FOLDER", folder)
        monkeypatch.setattr(nvrtc, "include_folders", lambda i=i: (f"/cuda{i}/include",))
        launcher.read.cache_clear()
        launcher.cached_build("scale", "sm_80", FLOAT)
    launcher.read.cache_clear()
    assert len(compiled) == 1


def test_a_header_is_part_of_the_key(compiled: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(signature, "FOLDER", tmp_path)
    (tmp_path / "common.cuh").write_text('#include "deeper.cuh"')
    (tmp_path / "deeper.cuh").write_text("// one")
    launcher.cached_build("scale", "sm_80", FLOAT)
    (tmp_path / "deeper.cuh").write_text("// two")
    launcher.cached_build("scale", "sm_80", FLOAT)
    assert len(compiled) == 2


@pytest.mark.parametrize("damage", [b"", b"x" * 31, b"x" * 500])
def test_a_damaged_cache_costs_a_compilation(damage: bytes, compiled: list[str]) -> None:
    cubin = launcher.cached_build("scale", "sm_80", FLOAT)
    (path,) = launcher.cache_folder().iterdir()
    path.write_bytes(damage)
    assert launcher.cached_build("scale", "sm_80", FLOAT) == cubin
    assert launcher.cached_build("scale", "sm_80", FLOAT) == cubin
    assert len(compiled) == 2


def test_a_cache_that_cannot_be_written_costs_a_compilation(compiled: list[str], tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where a folder is wanted")
    assert launcher.cached_build("scale", "sm_80", FLOAT) == launcher.cached_build("scale", "sm_80", FLOAT)
    assert len(compiled) == 2


def test_a_failed_write_leaves_no_file(compiled: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(old: str, new: Path) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    launcher.cached_build("scale", "sm_80", FLOAT)
    assert list(launcher.cache_folder().iterdir()) == []


def test_macros_are_defined_after_the_headers_and_line_numbers_are_kept() -> None:
    text = '// one\n#include "common.cuh"\n#include <cuda_fp16.h>\n\nT x;\n'
    lines = signature.with_defines(text, {"T": "float", "N": "4"}).splitlines()
    assert lines == ["// one", '#include "common.cuh"', "#include <cuda_fp16.h>", "#define N 4", "#define T float",
                     "#line 4", "", "T x;"]  # fmt: skip
    assert signature.with_defines("T x;\n", {"T": "float"}).splitlines() == ["#define T float", "#line 1", "T x;"]


# --- with NVRTC itself ----------------------------------------------------------------------------


@pytest.fixture
def real_nvrtc() -> None:
    try:
        nvrtc.library(), nvrtc.include_folders()
    except nvrtc.Missing as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_90a"])
@pytest.mark.usefixtures("real_nvrtc")
def test_machine_code(arch: str) -> None:
    cubin, log = launcher.build("scale", arch, FLOAT)
    assert cubin[:4] == b"\x7fELF"
    assert f"Compiling entry function 'scale' for '{arch}'" in log
    assert launcher.cached_build("scale", arch, FLOAT) == launcher.cached_build("scale", arch, FLOAT)


@pytest.mark.usefixtures("real_nvrtc")
def test_a_compilation_error_names_the_line(source: Path) -> None:
    source.write_text(SOURCE.replace("if (i < n)", "if (i < m)"))
    with pytest.raises(nvrtc.CompilationError, match=r'scale.cu\(6\): error: identifier "m" is undefined'):
        launcher.build("scale", "sm_80", FLOAT)


def test_no_nvrtc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvrtc, "_folders", lambda: iter(()))
    monkeypatch.setattr(nvrtc, "SONAMES", ("libnone.so",))
    for find in (nvrtc.library, nvrtc.include_folders):
        with pytest.raises(nvrtc.Missing, match=r'not installed: pip install -e "\.\[cuda13\]"'):
            find.__wrapped__()


def test_compiling_does_not_import_cupy() -> None:
    program = "import sys; import tensorgrad.backend.cupy.launcher; print('cupy' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


# --- on a stand-in for the driver -------------------------------------------


class Driver:
    """CuPy's modules and functions; records the calls."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.refuse: Exception | None = None
        self.cupy: Any = FakeCupy()
        self.cupy.cuda.function = self
        self.cupy.cuda.driver.funcSetAttribute = lambda pointer, attribute, value: self.calls.append(("ask", value))
        self.cupy.cuda.driver.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8
        self.ptr = 1

    def Module(self) -> "Driver":
        return self

    def load(self, cubin: bytes) -> None:
        self.calls.append(("load", cubin.split()[1].decode()))

    def get_function(self, name: str) -> "Driver":
        self.calls.append(("function", name))
        return self

    def __call__(self, grid: Any, block: Any, args: Any, shared: int) -> None:
        if self.refuse:
            raise self.refuse
        self.calls.append(("start", grid, block, tuple(type(x).__name__ for x in args), shared))


def test_a_kernel_is_loaded_once_and_started(compiled: list[str]) -> None:
    driver = Driver()
    cuda = CudaLauncher(driver.cupy)
    given = arguments(x=None, y=fake(np.ones(100, np.float16)))
    for shared in (0, 48 * 1024, 100_000, 90_000):
        cuda.launch("scale", "scale", (2,), (64,), given, shared, HALF)
    cuda.launch("scale", "nothing", (1, 2), (1,), (), 0, HALF)
    starts = [("start", (2, 1, 1), (64, 1, 1), ("uint64", "FakeArray", "int64", "float32"), n)
              for n in (0, 48 * 1024, 100_000, 90_000)]  # fmt: skip
    assert driver.calls == [
        ("load", "-arch=sm_90a"), ("function", "scale"), *starts[:2], ("ask", 100_000), *starts[2:],
        ("function", "nothing"), ("start", (1, 2, 1), (1, 1, 1), (), 0),
    ]  # fmt: skip


def test_the_error_names_the_kernel(compiled: list[str]) -> None:
    driver = Driver()
    driver.refuse = driver.cupy.cuda.driver.CUDADriverError("CUDA_ERROR_LAUNCH_FAILED: unspecified launch failure")
    message = r"^kernel scale of scale.cu, grid \(2, 1, 1\), block \(64, 1, 1\): CUDA_ERROR_LAUNCH_FAILED"
    with pytest.raises(RuntimeError, match=message):
        CudaLauncher(driver.cupy).launch("scale", "scale", (2,), (64,), arguments(), 0, HALF)


@pytest.mark.usefixtures("compiled")
def test_the_architecture_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    cupy = FakeCupy()
    for capability, arch in (("80", "sm_80"), ("87", "sm_80"), ("89", "sm_89"), ("90", "sm_90a"), ("121", "sm_120")):
        monkeypatch.setattr(cupy.cuda.Device, "compute_capability", capability)
        assert CudaLauncher(cupy).arch(0) == arch
    for capability, said in (
        ("70", '7.0, .*: pip install -e ".\\[cuda12\\]"$'),
        ("130", "13.0, .*: a newer CUDA is needed$"),
    ):
        monkeypatch.setattr(cupy.cuda.Device, "compute_capability", capability)
        with pytest.raises(RuntimeError, match=f"^this GPU has compute capability {said}"):
            CudaLauncher(cupy).arch(0)


@pytest.mark.usefixtures("real_nvrtc")
def test_architectures_of_nvrtc() -> None:
    known = nvrtc.architectures()
    assert {80, 90} <= set(known)
    assert list(known) == sorted(known)
