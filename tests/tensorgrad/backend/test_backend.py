"""Choosing a backend; and the CuPy backend on a stand-in for CuPy that is made of NumPy."""

import builtins
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from emulated_cuda import EmulatingLauncher
from fake_cublaslt import FakeCublasLt
from fake_cupy import FakeArray, FakeCudaError, FakeCupy
from hypothesis import given, settings
from hypothesis import strategies as st
from op_table import Row

import tensorgrad as tg
from tensorgrad import Tensor, backend, nn, optim
from tensorgrad.backend import BackendUnavailable
from tensorgrad.backend.cupy import CupyBackend, driver


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """The initial state of the backends; what a test loads and makes current is undone after it."""
    loaded = {"numpy": backend.load("numpy")}
    monkeypatch.setattr(backend, "_loaded", loaded)
    monkeypatch.setattr(backend, "_by_type", {np.ndarray: loaded["numpy"]})
    monkeypatch.setattr(backend, "_current", loaded["numpy"])


@pytest.fixture
def cupy(registry: None, monkeypatch: pytest.MonkeyPatch) -> Any:
    module = FakeCupy()
    monkeypatch.setitem(sys.modules, "cupy", module)
    monkeypatch.setattr("tensorgrad.backend.cupy.CudaLauncher", lambda cupy: EmulatingLauncher())
    monkeypatch.setattr("tensorgrad.backend.cupy.cublaslt.load", FakeCublasLt)
    return module


# --- choosing -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nunba", "unknown backend 'nunba': choose auto, numpy, numba, cupy; did you mean 'numba'?"),
        ("Cupy", "unknown backend 'Cupy': choose auto, numpy, numba, cupy; did you mean 'cupy'?"),
        ("audo", "unknown backend 'audo': choose auto, numpy, numba, cupy; did you mean 'auto'?"),
        ("torch", "unknown backend 'torch': choose auto, numpy, numba, cupy"),
        ("", "unknown backend '': choose auto, numpy, numba, cupy"),
    ],
)
def test_unknown_names(name: str, message: str, registry: None) -> None:
    for choose in (tg.use_backend, backend.load):
        with pytest.raises(ValueError) as caught:
            choose(name)
        assert str(caught.value) == message
    assert tg.get_backend().name == "numpy"


def test_numpy_is_the_default() -> None:
    code = "import tensorgrad as tg; print(tg.get_backend().name, tg.get_backend().xp.__name__)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["numpy", "numpy"]


def test_a_backend_is_current_at_once_and_until_the_end_of_its_block(cupy: Any) -> None:
    with tg.use_backend("cupy") as outer:
        assert outer.backend.name == tg.get_backend().name == "cupy"
        with tg.use_backend("numpy"):
            assert tg.get_backend().name == "numpy"
            tg.use_backend("cupy")
            assert tg.get_backend().name == "cupy"
        assert tg.get_backend().name == "cupy"
    assert tg.get_backend().name == "numpy"
    with pytest.raises(KeyError), tg.use_backend("cupy"):
        raise KeyError
    assert tg.get_backend().name == "numpy"
    chosen = tg.use_backend("cupy")
    assert tg.get_backend().name == "cupy"
    tg.use_backend("numpy")
    with chosen:
        assert tg.get_backend().name == "cupy"
    assert tg.get_backend().name == "numpy"


def test_reasons(cupy: Any) -> None:
    assert tg.use_backend("numpy").reason == "numpy was requested"
    chosen = tg.use_backend("auto")
    assert (chosen.backend.name, chosen.reason) == ("cupy", "auto chose cupy")


def test_auto_says_which_backends_it_skipped(registry: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str) -> Any:
        if name == "numpy":
            return backend._loaded["numpy"]
        raise BackendUnavailable(f"no {name} today")

    monkeypatch.setattr(backend, "load", load)
    chosen = tg.use_backend("auto")
    assert chosen.backend.name == "numpy"
    assert chosen.reason == "auto chose numpy; not cupy: no cupy today; not numba: no numba today"
    assert backend.check("cupy") == "no cupy today"
    assert backend.check("numpy") is None


# --- when CuPy cannot be used ----------------------------------------------------------------------


def refused() -> str:
    with pytest.raises(BackendUnavailable) as caught:
        tg.use_backend("cupy")
    assert tg.get_backend().name == "numpy"
    message = str(caught.value)
    assert "\n" not in message
    assert backend.check("cupy") == message
    return message


def replace_cupy(monkeypatch: pytest.MonkeyPatch, folder: Any, code: str) -> None:
    """Let `import cupy` run this code."""
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    (folder / "cupy.py").write_text(code)
    monkeypatch.syspath_prepend(folder)


def test_cupy_is_not_installed(registry: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    message = refused()
    assert message == 'CuPy is not installed: pip install -e ".[cuda13]" (cuda12 for a driver of CUDA 12)'


def test_a_missing_driver_is_found_without_importing_cupy(
    registry: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    replace_cupy(monkeypatch, tmp_path, "raise AssertionError")
    monkeypatch.setattr(driver.sys, "platform", "linux")
    monkeypatch.setattr(driver, "driver_version", lambda: None)
    assert refused() == driver.NO_DRIVER


def test_elsewhere_than_on_linux_cupy_looks_for_the_driver(
    registry: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    replace_cupy(monkeypatch, tmp_path, "raise ImportError('was imported')")
    monkeypatch.setattr(driver.sys, "platform", "win32")
    monkeypatch.setattr(driver, "driver_version", lambda: None)
    assert "was imported" in refused()


def test_cupy_fails_to_import(registry: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr(driver, "driver_version", lambda: (13, 0))
    replace_cupy(monkeypatch, tmp_path, "raise ImportError('\\n====\\nlibcudart.so.13 is missing\\n')")
    message = refused()
    assert message.startswith("CuPy is installed but fails to import (====): pip install")


def test_something_that_cupy_needs_is_missing(registry: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr(driver, "driver_version", lambda: (13, 0))
    replace_cupy(monkeypatch, tmp_path, "import tensorgrad_needs_no_such_module")
    with pytest.raises(ModuleNotFoundError, match="tensorgrad_needs_no_such_module"):
        tg.use_backend("cupy")


@pytest.mark.parametrize(
    ("n_gpus", "message"),
    [
        (FakeCudaError("cudaErrorNoDevice: no CUDA-capable device is detected\nmore"),
         "CuPy is installed but finds no usable GPU (cudaErrorNoDevice: no CUDA-capable device is detected): "
         "check that nvidia-smi shows one, and that CUDA_VISIBLE_DEVICES does not hide it"),
        (FakeCudaError(""), "CuPy is installed but finds no usable GPU (FakeCudaError): check"),
        (0, "CuPy is installed but there is no GPU: choose numba or numpy"),
    ],
)  # fmt: skip
def test_there_is_no_gpu(n_gpus: Any, message: str, cupy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "driver_version", lambda: (13, 0))
    cupy.n_gpus = n_gpus
    assert refused().startswith(message)


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (None, "there is no NVIDIA driver here (libcuda.so.1 cannot be loaded): install one and check that nvidia-smi "
               "shows the GPU, or choose numba or numpy"),
        ((12, 4), "the NVIDIA driver is too old: it runs CUDA 12.4, and this CuPy needs CUDA 13: update the driver, or "
                  'pip install -e ".[cuda12]" for the installed driver'),
        ((11, 8), "the NVIDIA driver is too old: it runs CUDA 11.8, and this CuPy needs CUDA 13: update the driver"),
    ],
)  # fmt: skip
def test_there_is_no_driver_or_an_old_one(
    version: Any, message: str, cupy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "driver_version", lambda: version)
    cupy.n_gpus = FakeCudaError("cudaErrorInsufficientDriver: CUDA driver version is insufficient")
    assert refused() == message


def test_driver_version(monkeypatch: pytest.MonkeyPatch) -> None:
    class Library:
        status = 0

        def cuDriverGetVersion(self, number: Any) -> int:
            number._obj.value = 12040
            return self.status

    monkeypatch.setattr(driver.ctypes, "CDLL", lambda name: Library())
    assert driver.driver_version() == (12, 4)
    monkeypatch.setattr(Library, "status", 3)
    assert driver.driver_version() is None
    monkeypatch.undo()
    monkeypatch.setattr(driver, "LIBRARY", "libnone.so.1")
    assert driver.driver_version() is None


def test_no_memory_left_on_the_gpu(cupy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """CuPy's own error says only how much was requested; ours also how much is free."""

    def malloc(size: int) -> Any:
        raise cupy.cuda.memory.OutOfMemoryError(f"Out of memory allocating {size} bytes")

    backend.load("cupy")
    assert cupy.allocator(16).ptr
    monkeypatch.setattr(cupy.pool, "malloc", malloc)
    monkeypatch.setattr(cupy.pool, "used_bytes", lambda: 70 * 2**30, raising=False)
    monkeypatch.setattr(cupy.cuda.runtime, "memGetInfo", lambda: (2**29, 80 * 2**30))
    with pytest.raises(driver.OutOfMemory) as caught:
        cupy.allocator(3 * 2**30)
    assert str(caught.value) == (
        "GPU memory: 3.00 GiB were requested, 0.50 GiB of 80.00 GiB are free and 70.00 GiB hold this program's arrays: "
        "0.50 GiB would fit"
    )
    assert caught.value.share == pytest.approx(70.5 / 73)
    assert "8.0 MiB were requested" in str(driver.OutOfMemory(2**23, 0, 1, 2**30))


def test_bfloat16_is_registered_before_cupy_is_imported(cupy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    order = []
    real = builtins.__import__

    def spy(name: str, *args: Any, **options: Any) -> Any:
        order.append(name)
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", spy)
    backend.load("cupy")
    assert [name for name in order if name in ("ml_dtypes", "cupy")] == ["ml_dtypes", "cupy"]


def test_cupy_without_ml_dtypes(cupy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    assert isinstance(backend.load("cupy"), CupyBackend)


# --- the kernels of math.py on another array module ------------------------------------------------


def outcome(row: Row, inputs: list[Any], options: Any, k: Any) -> tuple[list[Any], list[Any]]:
    """Results and gradients, as NumPy arrays."""
    result = row.run(*inputs, **options)
    outputs = result if isinstance(result, list) else [result]
    for y in outputs:
        assert isinstance(y.data, k.array_type)
        if y.requires_grad:
            y.backward(k.asarray(np.linspace(-1, 1, y.size).reshape(y.shape)), retain_graph=True)
    tensors = [x for x in inputs if isinstance(x, Tensor) and x.grad is not None]
    assert all(type(x.grad) is k.array_type for x in tensors)
    return [y.numpy() for y in outputs], [k.to_numpy(x.grad) for x in tensors]


@settings(max_examples=5, deadline=None, derandomize=True)
@given(data=st.data())
def test_every_op_runs_on_arrays_that_are_not_numpys(row: Row, gpu: Any, data: Any) -> None:
    call = data.draw(row.calls)
    assert tg.get_backend() is gpu
    there = [Tensor(x, x.dtype.kind == "f") if isinstance(x, np.ndarray) else x for x in call.arrays()]
    with tg.use_backend("numpy") as reference:
        here = outcome(row, call.tensors(), call.options, reference.backend)
    options = dict(call.options)
    if row.name == "attention" and options["mask"] is not None:
        options["mask"] = Tensor(options["mask"])
    if row.name == "getitem":
        options["key"] = tg.ops.indexing.index_key(on_device(options["key"]))
    for got, expected in zip(outcome(row, there, options, gpu), here, strict=True):
        for a, b in zip(got, expected, strict=True):
            assert type(a) is np.ndarray
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def on_device(key: Any) -> Any:
    if isinstance(key, tuple):
        return tuple(on_device(part) for part in key)
    return Tensor(key) if isinstance(key, np.ndarray) else key


def test_tensors_are_created_on_the_current_backend(gpu: Any) -> None:
    made = [Tensor([1.0]), Tensor(np.ones(2)), tg.zeros(2), tg.arange(3), tg.normal(2), tg.eye(2), tg.linspace(0, 1, 3),
            tg.full(2, 1.0), tg.empty(2), tg.uniform(2), tg.zeros_like(tg.ones(2)), nn.Linear(2, 2).weight]  # fmt: skip
    assert all(isinstance(x.data, FakeArray) for x in made)
    x = tg.ones(2)
    assert Tensor(x).data is x.data
    assert (x[0].item(), x.tolist(), repr(x)) == (1.0, [1.0, 1.0], "Tensor([1., 1.], dtype=float32)")
    with tg.use_backend("numpy"):
        assert isinstance(tg.ones(2).data, np.ndarray)
        assert not isinstance(tg.ones(2).data, FakeArray)


def test_results_are_on_the_backend_of_the_operands(gpu: Any) -> None:
    """Whichever backend is current."""
    with tg.use_backend("numpy"):
        here = Tensor(np.ones(2), requires_grad=True)
    like = [tg.zeros_like(here), tg.ones_like(here), tg.full_like(here, 3), tg.empty_like(here)]
    assert all(type(x.data) is np.ndarray for x in (here.detach(), here * 2, *like))
    here.backward(np.ones(2))
    assert type(here.grad) is np.ndarray
    there = tg.ones(2, requires_grad=True)
    with tg.use_backend("numpy"):
        for x in (there.detach(), there * 2, tg.zeros_like(there)):
            assert isinstance(x.data, FakeArray)
        (there * 2).sum().backward()
        assert isinstance(there.grad, FakeArray)
        there.grad = np.ones(2, np.float32)
        assert isinstance(there.grad, FakeArray)


def test_backends_do_not_mix(gpu: Any) -> None:
    there = tg.ones(2)
    cupy_first = r"operands are on two backends, cupy and numpy; move one with .to\('cupy'\) or .to\('numpy'\)$"
    with tg.use_backend("numpy"):  # which arrays of NumPy are on then, whatever was used before
        here = Tensor(np.ones(2))
        with pytest.raises(TypeError, match="^add: " + cupy_first):
            _ = there + np.ones(2)
    with pytest.raises(TypeError, match="^concat: " + cupy_first):
        tg.concat([there, here])
    with pytest.raises(TypeError, match="^multiply: operands are on two backends, numpy and cupy"):
        _ = here * there
    np.testing.assert_array_equal((there + here.to("cupy")).numpy(), [2, 2])
    np.testing.assert_array_equal((there * np.float32(3) + 1).numpy(), [4, 4])  # scalars are allowed on every backend


def test_gradients_move_back_with_to(cupy: Any) -> None:
    """The other backend is loaded by `to` itself."""
    x = Tensor(np.array([1.0, 2.0]), requires_grad=True)
    y = x.to("cupy")
    assert isinstance(y.data, FakeArray)
    z = (y * y).to("numpy")
    assert type(z.data) is np.ndarray
    z.sum().backward()
    assert type(x.grad) is np.ndarray
    np.testing.assert_array_equal(x.grad, [2, 4])


def test_indices_are_not_checked_on_the_gpu(gpu: Any) -> None:
    """A check would have to wait for the GPU."""
    gpu.check_indices("take", object(), 3)
    gpu.check_indices("cross_entropy", object(), 3, lowest=0)
    before = gpu.xp.copied_to_host
    weight = tg.ones((3, 2), requires_grad=True)
    loss = tg.cross_entropy(tg.embedding(weight, tg.arange(2)), tg.arange(2))
    loss.backward()
    assert gpu.xp.copied_to_host == before


def train(k: Any) -> list[float]:
    tg.manual_seed(0)
    model = nn.Module()
    model.table, model.norm, model.head = nn.Embedding(7, 8), nn.RMSNorm(8), nn.Linear(8, 7)
    optimizers = [optim.AdamW(model.table.parameters(), lr=0.1), optim.SGD(model.head.parameters(), 0.1, momentum=0.9)]
    losses = []
    for step in range(5):
        tokens = Tensor(tg.Generator(1).integers(0, 7, (2, 4), step=step))
        h = tg.dropout(model.norm(model.table(tokens)), p=0.2)
        y = tg.attention(*[h.reshape(2, 4, 2, 4).permute_dims(0, 2, 1, 3)] * 3, causal=True)
        loss = tg.cross_entropy(model.head(y.permute_dims(0, 2, 1, 3).reshape(2, 4, 8)), tokens)
        loss.backward()
        losses += [loss.item(), float(optim.clip_grad_norm(model.parameters(), 1.0))]
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    for optimizer in optimizers:
        state = optimizer.state_dict()
        optimizer.load_state_dict({**state, "state": {name: k.to_numpy(a) for name, a in state["state"].items()}})
    model.load_state_dict({name: k.to_numpy(array) for name, array in model.state_dict().items()})
    model.astype(np.float64)
    assert all(type(p.data) is k.array_type for p in model.parameters())
    return losses


def test_a_seed_trains_the_same_model_on_every_backend(gpu: Any) -> None:
    there = train(gpu)
    with tg.use_backend("numpy") as reference:
        here = train(reference.backend)
    np.testing.assert_allclose(there, here, rtol=1e-5)


def test_operands_without_a_backend() -> None:
    with pytest.raises(TypeError, match="^exp: no backend for list, float$"):
        backend.backend_of("exp", [[1], 2.0])
