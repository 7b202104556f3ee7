"""Starting kernels: a .cu file of this folder and its arguments -> work on the current stream.

A kernel is compiled for the GPU at hand the first time it is asked for, and kept on disk. Its argument list is checked
against its own declaration before every launch: the GPU would take a float64 for a float32 and say nothing.
"""

import contextlib
import functools
import hashlib
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tensorgrad.backend.cupy import nvrtc
from tensorgrad.backend.cupy.signature import (
    C_TYPES,
    FOLDER,
    Parameter,
    dependencies,
    path_of,
    signatures,
    with_defines,
)

Grid = tuple[int, ...]
Defines = tuple[tuple[str, str], ...]

STATIC_LIMIT = 48 * 1024  # bytes of shared memory that a kernel may have without asking
THREADS = 1024  # of a block, at most
GRID = (2**31 - 1, 65535, 65535)


class Launcher(Protocol):
    """What kernels are started through; tests put one of their own in its place."""

    def launch(
        self, source: str, kernel: str, grid: Grid, block: Grid, args: Sequence[Any], shared: int = 0,
        defines: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        """Start `kernel` of the file `source`.cu with its macros `defines`.

        grid, block: up to three sizes. args: arrays, contiguous unless the kernel takes strides, or None for a
        null pointer, and NumPy scalars. shared:
        bytes of dynamic shared memory. Raises TypeError for arguments that do not fit the kernel's declaration.
        """


class CheckedLauncher:
    """A launcher that checks, and leaves it to `start` what to do with arguments that fit."""

    def launch(
        self, source: str, kernel: str, grid: Grid, block: Grid, args: Sequence[Any], shared: int = 0,
        defines: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        """See `Launcher`."""
        macros = tuple(sorted(defines.items())) if defines else ()
        check_arguments(kernel, parameters(source, kernel, macros), args)
        if len(block) > 3 or len(grid) > 3 or not 0 < int(np.prod(block)) <= THREADS or min(block) < 1:
            raise ValueError(f"kernel {kernel}: block {block} is not 1 to {THREADS} threads")
        if any(not 0 < n <= limit for n, limit in zip(grid, GRID, strict=False)):
            raise ValueError(f"kernel {kernel}: grid {grid} is not 1 to {GRID} blocks")
        self.start(source, kernel, (*grid, 1, 1)[:3], (*block, 1, 1)[:3], args, int(shared), macros)

    def start(
        self, source: str, kernel: str, grid: Grid, block: Grid, args: Sequence[Any], shared: int, defines: Defines
    ) -> None:
        """Do it."""
        raise NotImplementedError


def parameters(source: str, kernel: str, defines: Defines) -> tuple[Parameter, ...]:
    """What a kernel takes. Raises ValueError for one that its file does not have."""
    found = signatures(read(source), defines)
    if kernel not in found:
        raise ValueError(f"kernel {kernel}: {source}.cu has none of that name; it has {', '.join(found) or 'none'}")
    return found[kernel]


@functools.cache
def read(source: str) -> str:
    """The text of a .cu file."""
    return path_of(source).read_text(encoding="utf-8")


def check_arguments(kernel: str, wanted: Sequence[Parameter], args: Sequence[Any]) -> None:
    """Raise TypeError where arguments do not fit: their number, arrays or scalars, dtypes, contiguity.

    An array x with gaps is for a kernel that takes its strides, as parameters called x_stride_...
    """
    strided = {parameter.name.partition("_stride_")[0] for parameter in wanted if "_stride_" in parameter.name}
    if len(args) != len(wanted):
        names = ", ".join(parameter.name for parameter in wanted)
        raise TypeError(f"kernel {kernel}: {len(args)} arguments for {len(wanted)} parameters ({names})")
    for parameter, x in zip(wanted, args, strict=True):
        if parameter.pointer:
            if x is None:
                continue
            if not hasattr(x, "dtype") or isinstance(x, np.generic):
                raise TypeError(f"kernel {kernel}: {parameter.name} is {x!r}, an array of {parameter.dtype} is needed")
            if x.dtype.name != parameter.dtype:
                raise TypeError(f"kernel {kernel}: {parameter.name} has dtype {x.dtype}, not {parameter.dtype}")
            if not x.flags.c_contiguous and parameter.name not in strided:
                raise TypeError(f"kernel {kernel}: {parameter.name} {x.shape} is not contiguous")
        elif not isinstance(x, np.generic) or x.dtype.name != parameter.dtype:
            raise TypeError(f"kernel {kernel}: {parameter.name} is {x!r}, a NumPy {parameter.dtype} is needed")


def c_type(dtype: Any) -> str:
    """C's name for a floating dtype, for `defines`."""
    return C_TYPES[np.dtype(dtype).name]


# --- compiling ------------------------------------------------------------------------------------


def options(arch: str) -> list[str]:
    """What every kernel is compiled with. arch: sm_80, sm_90a ..."""
    folders = [str(FOLDER), *nvrtc.include_folders()]
    return [f"-arch={arch}", "-std=c++17", "--ptxas-options=-v", *(f"-I{folder}" for folder in folders)]


def build(source: str, arch: str, defines: Defines = ()) -> tuple[bytes, str]:
    """Machine code of a .cu file for one kind of GPU, and what the compiler said."""
    return nvrtc.compile_cubin(f"{source}.cu", with_defines(read(source), dict(defines)), options(arch))


def cached_build(source: str, arch: str, defines: Defines = ()) -> bytes:
    """The same, from disk where it is there. A cache that is damaged or cannot be written costs a compilation."""
    path = cache_folder() / f"{source}-{arch}-{_key(source, arch, defines)}.cubin"
    with contextlib.suppress(OSError):
        stored = path.read_bytes()
        if hashlib.sha256(stored[32:]).digest() == stored[:32]:
            return stored[32:]
    cubin, _ = build(source, arch, defines)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_aside(path, hashlib.sha256(cubin).digest() + cubin)
    return cubin


def cache_folder() -> Path:
    """Where compiled kernels are kept, as the XDG base directory specification says."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tensorgrad" / "kernels"


def _key(source: str, arch: str, defines: Defines) -> str:
    """A name for all that the machine code depends on."""
    digest = hashlib.sha256(repr((nvrtc.version(), options(arch), defines)).encode())
    for path in dependencies(path_of(source)):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:32]


def _write_aside(path: Path, content: bytes) -> None:
    """Write the file whole or not at all, whoever else is writing it."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(name, path)
    except OSError:
        os.unlink(name)
        raise


# --- on the GPU -----------------------------------------------------------------------------------


class CudaLauncher(CheckedLauncher):
    """Kernels on the current GPU and its current stream. Nothing here waits for the GPU."""

    def __init__(self, cupy: Any) -> None:
        self.cupy = cupy
        self._modules: dict[tuple[int, str, Defines], Any] = {}
        self._functions: dict[tuple[int, str, str, Defines], Any] = {}
        self._allowed: dict[tuple[int, str, str, Defines], int] = {}  # bytes of shared memory that were asked for

    def start(
        self, source: str, kernel: str, grid: Grid, block: Grid, args: Sequence[Any], shared: int, defines: Defines
    ) -> None:
        """Launch it. Raises RuntimeError, naming the kernel, where the driver refuses."""
        key = (self.cupy.cuda.runtime.getDevice(), source, kernel, defines)
        try:
            function = self._functions.get(key) or self._load(key)
            if shared > self._allowed.get(key, STATIC_LIMIT):
                self._ask_for_shared_memory(function, shared)
                self._allowed[key] = shared
            function(grid, block, tuple(np.uint64(0) if x is None else x for x in args), shared)
        except self.cupy.cuda.driver.CUDADriverError as error:
            raise RuntimeError(f"kernel {kernel} of {source}.cu, grid {grid}, block {block}: {error}") from error

    def _load(self, key: tuple[int, str, str, Defines]) -> Any:
        device, source, kernel, defines = key
        module = self._modules.get((device, source, defines))
        if module is None:
            module = self.cupy.cuda.function.Module()
            module.load(cached_build(source, self.arch(device), defines))
            self._modules[device, source, defines] = module
        self._functions[key] = module.get_function(kernel)
        return self._functions[key]

    def arch(self, device: int) -> str:
        """sm_NN of a GPU: with an `a` where instructions of that generation alone are to be had.

        Machine code runs on later GPUs of its generation too, so one that NVRTC does not know takes the last before
        it. Raises RuntimeError for a generation that this NVRTC does not compile for.
        """
        number, known = int(self.cupy.cuda.Device(device).compute_capability), nvrtc.architectures()
        best = max((n for n in known if n // 10 == number // 10 and n <= number), default=0)
        if not best:
            older = ': pip install -e ".[cuda12]"' if number < min(known) else ": a newer CUDA is needed"
            raise RuntimeError(
                f"this GPU has compute capability {number / 10}, for which NVRTC {'.'.join(map(str, nvrtc.version()))} "
                f"does not compile; it knows {', '.join(str(n / 10) for n in known)}{older}"
            )
        return f"sm_{best}a" if best == 90 else f"sm_{best}"

    def _ask_for_shared_memory(self, function: Any, n_bytes: int) -> None:
        driver = self.cupy.cuda.driver
        driver.funcSetAttribute(function.ptr, driver.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, n_bytes)
