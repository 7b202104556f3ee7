"""The doctor: what it finds on this machine, and on ones that are not this one."""

import importlib.metadata
import re
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from emulated_cuda import COMPILER, emulated_gpu

import tensorgrad as tg
from tensorgrad import backend, doctor
from tensorgrad.backend.cupy import cublaslt, nvrtc


def run(capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    status = doctor.main([])
    return status, capsys.readouterr().out


def test_the_command() -> None:
    result = subprocess.run([sys.executable, "-m", "tensorgrad.doctor"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr  # it may hold Numba's progress, which compiles at first
    text = result.stdout
    for title in ("System", "Packages", "GPU", "Backends"):
        assert f"\n{title}\n" in f"\n{text}"
    assert f"  numpy        {np.__version__}\n" in text
    assert "  numpy        works: 13 kernels agree with the plain mathematics in float32\n" in text
    assert max(map(len, text.splitlines())) < 200


def test_the_current_backend_stays(capsys: pytest.CaptureFixture[str]) -> None:
    before = tg.get_backend()
    run(capsys)
    assert tg.get_backend() is before


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler here")
def test_a_gpu_that_works(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    smi = "0, NVIDIA H200, 9.0, 143771 MiB, 143000 MiB, 580.65\n"
    monkeypatch.setattr(doctor, "driver_version", lambda: (13, 0))
    answer = subprocess.CompletedProcess([], 0, smi, "")
    monkeypatch.setattr(
        doctor, "subprocess", SimpleNamespace(run=lambda *args, **options: answer, SubprocessError=OSError)
    )
    with emulated_gpu():
        monkeypatch.setattr(type(cublaslt.load()), "version", lambda library: 130100, raising=False)
        status, text = run(capsys)
    assert status == 0
    assert "  products     cuBLASLt 130100\n" in text
    assert "  driver       runs CUDA 13.0 and older\n" in text
    assert "  gpu 0        NVIDIA H200, compute capability 9.0, 143000 MiB of 143771 MiB free, driver 580.65\n" in text
    assert "  cupy         works: 13 kernels agree with the plain mathematics in float32 and bfloat16\n" in text
    assert text.endswith("\n--backend auto takes cupy\n")


def test_nothing_but_numpy(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def version(package: str) -> str:
        if package != "numpy":
            raise importlib.metadata.PackageNotFoundError
        return "2.3"

    def missing() -> Any:
        raise nvrtc.Missing("no NVRTC today")

    def unavailable() -> Any:
        raise cublaslt.CublasLtError("not today")

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(doctor, "driver_version", lambda: None)
    monkeypatch.setattr(nvrtc, "include_folders", missing)
    monkeypatch.setattr(cublaslt, "load", unavailable)
    monkeypatch.setattr(backend, "check", lambda name: None if name == "numpy" else f"no {name} today")
    status, text = run(capsys)
    assert status == 0
    for line in (
        'numba        not installed; for compiled kernels for the CPU: pip install -e ".[fast]"',
        "driver       none",
        "compiler     no NVRTC today",
        "products     no cuBLASLt: not today",
        "numba        does not work: no numba today",
        "cupy         does not work: no cupy today",
    ):
        assert f"  {line}\n" in text
    assert text.endswith("\n--backend auto takes numpy\n")


def test_a_kernel_that_is_wrong(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    right = type(backend.load("numpy")).softmax
    monkeypatch.setattr(type(backend.load("numpy")), "softmax", lambda k, x, axis: right(k, x, axis) * 1.01)
    monkeypatch.setattr(backend, "check", lambda name: None if name == "numpy" else "not today")
    status, text = run(capsys)
    assert status == 1
    assert re.search(r"numpy        does not work: softmax is off by \d\.\de-0\d\n", text)
    assert text.endswith("No backend works: reinstall NumPy\n")


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler here")
def test_a_kernel_for_tensor_cores_that_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32 it is another kernel, which is right."""
    with emulated_gpu() as k:
        right = k.attention_backward
        monkeypatch.setattr(
            k, "attention_backward", lambda dy, *rest: [x * (1.5 if dy.itemsize == 2 else 1) for x in right(dy, *rest)]
        )
        works, text = doctor.backend_report("cupy")
    assert not works
    assert re.fullmatch(r"does not work: attention_backward in bfloat16 is off by \d\.\de[-+]0\d", text)


@pytest.mark.parametrize("result", [float("nan"), None])
def test_a_kernel_that_gives_nothing(result: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def erf(k: Any, x: Any, axis: int) -> Any:
        if result is None:
            raise RuntimeError("kernel softmax:\nillegal address")
        return x * result

    monkeypatch.setattr(type(backend.load("numpy")), "softmax", erf)
    works, text = doctor.backend_report("numpy")
    assert not works
    assert text in (
        "does not work: softmax is off by nan",
        "does not work: RuntimeError: kernel softmax: illegal address",
    )


def test_nvidia_smi_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **options: Any) -> Any:
        raise FileNotFoundError("nvidia-smi")

    monkeypatch.setattr(doctor.subprocess, "run", refuse)
    assert list(doctor.devices()) == [("gpus", "nvidia-smi does not answer: nvidia-smi")]
