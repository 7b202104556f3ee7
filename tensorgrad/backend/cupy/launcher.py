"""Launching the kernels of this folder's .cu files on the current stream.

A kernel is compiled for the GPU at its first launch, and cached on disk. Its arguments are checked against its
declaration before every launch: the GPU would read a float64 as a float32 without an error.
"""

import contextlib
import functools
import hashlib
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tensorgrad.backend import cache
from tensorgrad.backend.cupy import nvrtc, signature
from tensorgrad.backend.cupy.signature import Parameter

Grid = tuple[int, ...]
Defines = tuple[tuple[str, str], ...]

DEFAULT_SHARED_BYTES = 48 * 1024  # a kernel needs an attribute to use more shared memory
MAX_THREADS = 1024  # of a block
MAX_GRID = (2**31 - 1, 65535, 65535)


class Launcher:
    """Checks the arguments of launches; subclasses define `start`."""

    def launch(
        self, source: str, kernel: str, grid: Grid, block: Grid, args: Sequence[Any], shared: int = 0,
        defines: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        """Launch `kernel` of the file `source`.cu, compiled with the macros `defines`.

        grid, block: up to three sizes. args: arrays, contiguous unless the kernel has parameters for their strides,
        None for a null pointer, and NumPy scalars. shared: bytes of dynamic shared memory. Raises TypeError for
        arguments that do not match the kernel's declaration.
        """
        macros = tuple(sorted(defines.items())) if defines else ()
        check_arguments(kernel, parameters(source, kernel, macros), args)
        if len(block) > 3 or len(grid) > 3 or not 0 < int(np.prod(block)) <= MAX_THREADS or min(block) < 1:
            raise ValueError(f"kernel {kernel}: block {block} is not 1 to {MAX_THREADS} threads")
        if any(not 0 < n <= limit for n, limit in zip(grid, MAX_GRID, strict=False)):
            raise ValueError(f"kernel {kernel}: grid {grid} is not 1 to {MAX_GRID} blocks")
        self.start(source, kernel, (*grid, 1, 1)[:3], (*block, 1, 1)[:3], args, int(shared), macros)

    def start(
        self, source: str, kernel: str, grid: Grid, block: Grid, args: Sequence[Any], shared: int, defines: Defines
    ) -> None:
        """Launch a kernel whose arguments have been checked."""
        raise NotImplementedError


def parameters(source: str, kernel: str, defines: Defines) -> tuple[Parameter, ...]:
    """The parameters of a kernel. Raises ValueError for a kernel that its file does not define."""
    found = signature.signatures(read(source), defines)
    if kernel not in found:
        raise ValueError(f"kernel {kernel}: {source}.cu does not define it; it defines {', '.join(found) or 'none'}")
    return found[kernel]


@functools.cache
def read(source: str) -> str:
    """The text of a .cu file."""
    return signature.path_of(source).read_text(encoding="utf-8")


def check_arguments(kernel: str, declared: Sequence[Parameter], args: Sequence[Any]) -> None:
    """Raise TypeError where the number, kinds, dtypes or contiguity of the arguments do not match the declaration.

    An array x may be non-contiguous if the kernel has parameters for its strides, called x_stride_...
    """
    strided = {parameter.name.partition("_stride_")[0] for parameter in declared if "_stride_" in parameter.name}
    if len(args) != len(declared):
        names = ", ".join(parameter.name for parameter in declared)
        raise TypeError(f"kernel {kernel}: {len(args)} arguments for {len(declared)} parameters ({names})")
    for parameter, x in zip(declared, args, strict=True):
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
    return signature.C_TYPES[np.dtype(dtype).name]


def options(arch: str) -> list[str]:
    """The compiler options of every kernel. arch: sm_80, sm_90a ..."""
    folders = [str(signature.FOLDER), *nvrtc.include_folders()]
    return [f"-arch={arch}", "-std=c++17", "--ptxas-options=-v", *(f"-I{folder}" for folder in folders)]


def build(source: str, arch: str, defines: Defines = ()) -> tuple[bytes, str]:
    """Machine code of a .cu file for one architecture, and the log of the compiler."""
    return nvrtc.compile_cubin(f"{source}.cu", signature.with_defines(read(source), dict(defines)), options(arch))


def cached_build(source: str, arch: str, defines: Defines = ()) -> bytes:
    """The machine code, from the cache on disk if it is there; a damaged cache entry is compiled again."""
    path = cache_folder() / f"{source}-{arch}-{_key(source, arch, defines)}.cubin"
    with contextlib.suppress(OSError):
        stored = path.read_bytes()
        if hashlib.sha256(stored[32:]).digest() == stored[:32]:
            return stored[32:]
    cubin, _ = build(source, arch, defines)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, hashlib.sha256(cubin).digest() + cubin)
    return cubin


def cache_folder() -> Path:
    """The folder of compiled kernels, following the XDG base directory specification."""
    return cache.cache_folder() / "kernels"


def _key(source: str, arch: str, defines: Defines) -> str:
    """A hash of all that the machine code depends on; not of where the headers are, so that it can be carried."""
    given = [option for option in options(arch) if not option.startswith("-I")]
    digest = hashlib.sha256(repr((nvrtc.version(), given, defines)).encode())
    for path in signature.dependencies(signature.path_of(source)):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:32]


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file atomically, even if other processes write it at the same time."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(name, path)
    except OSError:
        os.unlink(name)
        raise


class CudaLauncher(Launcher):
    """Launches kernels on the current stream of the current GPU, without synchronisation."""

    def __init__(self, cupy: Any) -> None:
        self.cupy = cupy
        self._modules: dict[tuple[int, str, Defines], Any] = {}
        self._functions: dict[tuple[int, str, str, Defines], Any] = {}
        self._allowed: dict[tuple[int, str, str, Defines], int] = {}  # bytes of shared memory that the kernel may use

    def start(
        self, source: str, kernel: str, grid: Grid, block: Grid, args: Sequence[Any], shared: int, defines: Defines
    ) -> None:
        """Launch the kernel. Raises RuntimeError, naming it, if the driver reports an error."""
        key = (self.cupy.cuda.runtime.getDevice(), source, kernel, defines)
        try:
            function = self._functions.get(key) or self._load(key)
            if shared > self._allowed.get(key, DEFAULT_SHARED_BYTES):
                self._allow_shared_memory(function, shared)
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
        """The architecture to compile for: sm_NN, or sm_90a for instructions that only Hopper has.

        Machine code also runs on later GPUs of the same generation, so for a GPU that NVRTC does not know, it is the
        latest architecture before. Raises RuntimeError for a generation that this NVRTC does not support.
        """
        number, known = int(self.cupy.cuda.Device(device).compute_capability), nvrtc.architectures()
        best = max((n for n in known if n // 10 == number // 10 and n <= number), default=0)
        if not best:
            older = ': pip install -e ".[cuda12]"' if number < min(known) else ": a newer CUDA is needed"
            raise RuntimeError(
                f"this GPU has compute capability {number / 10}, for which NVRTC {'.'.join(map(str, nvrtc.version()))} "
                f"does not compile; it supports {', '.join(str(n / 10) for n in known)}{older}"
            )
        return f"sm_{best}a" if best == 90 else f"sm_{best}"

    def _allow_shared_memory(self, function: Any, n_bytes: int) -> None:
        driver = self.cupy.cuda.driver
        driver.funcSetAttribute(function.ptr, driver.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, n_bytes)
