"""Launchers for a machine without a GPU: one runs the same .cu files on the CPU, one only records launches.

See cuda_emulation/cuda_emulation.h for the errors that the emulation detects, and those that it cannot.
"""

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from fake_cublaslt import FakeCublasLt
from fake_cupy import FakeCupy, arrays_in, loose, plain, run
from fake_memory import FakeStream, reset, touch
from numpy.lib.array_utils import byte_bounds

import tensorgrad as tg
from tensorgrad import backend
from tensorgrad.backend import cupy as cupy_backend
from tensorgrad.backend.cupy import CupyBackend, cublaslt, launcher
from tensorgrad.backend.cupy.launcher import Defines, Grid, Launcher
from tensorgrad.backend.cupy.signature import (
    FOLDER,
    KERNEL,
    Parameter,
    dependencies,
    path_of,
    signatures,
    with_defines,
)

HEADERS = Path(__file__).parent / "cuda_emulation"
HEADER = "cuda_emulation.h"
COMPILER = shutil.which(os.environ.get("CXX", "g++"))
FLAGS = [
    "-std=c++17", "-O1", "-shared", "-fPIC", "-DCUDA_EMU", "-fvisibility=hidden", "-fno-gnu-unique",
    "-fno-strict-aliasing", "-ffp-contract=off", "-U_FORTIFY_SOURCE", "-Wall", "-Wno-unknown-pragmas", "-Werror",
    f"-I{FOLDER}", f"-I{HEADERS}",
]  # fmt: skip
one_at_a_time = threading.Lock()  # the emulation has one set of fibers and shared memory
GUARD = 128  # bytes before and behind every array that a kernel must not touch; a multiple of all alignments


@dataclass(frozen=True)
class Launch:
    """The arguments of a launch."""

    source: str
    kernel: str
    grid: Grid
    block: Grid
    dtypes: tuple[str | None, ...]  # of the arguments; None for a null pointer
    shared: int
    defines: Defines


class RecordingLauncher(Launcher):
    """Checks and records every launch, and runs nothing."""

    def __init__(self) -> None:
        self.launches: list[Launch] = []

    def start(
        self, source: str, kernel: str, grid: Grid, block: Grid, args: Sequence[Any], shared: int, defines: Defines
    ) -> None:
        dtypes = tuple(None if x is None else x.dtype.name for x in args)
        self.launches.append(Launch(source, kernel, grid, block, dtypes, shared, defines))


class EmulatingLauncher(RecordingLauncher):
    """Runs every launch on the CPU, over arrays in its memory.

    The order of the threads must not change a bit of any result. backwards: blocks and threads run from the last to the
    first. seed: warps take turns in a random order. skipped: the file and line of a barrier that is left out.
    """

    def __init__(self, backwards: bool = False, seed: int | None = None, skipped: tuple[str, int] = ("", 0)) -> None:
        super().__init__()
        self.order = int(backwards) if seed is None else 2 + seed
        self.skipped = skipped

    def start(
        self, source: str, kernel: str, grid: Grid, block: Grid, args: Sequence[Any], shared: int, defines: Defines
    ) -> None:
        super().start(source, kernel, grid, block, args, shared, defines)
        constant = constants(source, kernel)
        names = [parameter.name for parameter in launcher.parameters(source, kernel, defines)]
        named = list(zip(args, names, strict=True))
        arrays = arrays_in(list(args))
        addresses = [address for x, name in named if name == "table" for address in addresses_in(x)]
        written = [x for x, name in named if name not in constant]
        touch([*arrays, *addresses], [*arrays_in(written), *addresses])
        if FakeStream.current.is_capturing():
            args = loose([plain(x) for x in args])
        run(lambda: self.now(source, kernel, grid, block, args, shared, defines))

    def now(
        self, source: str, kernel: str, grid: Grid, block: Grid, args: Sequence[Any], shared: int, defines: Defines
    ) -> None:
        """Run it at once, even while a graph is recorded."""
        run = getattr(library(source, defines), f"run_{kernel}")
        run.restype = ctypes.c_char_p
        memory = GuardedMemory([x for x in args if isinstance(x, np.ndarray)])
        values = [memory.argument(x) for x in args]
        pointers = (ctypes.c_void_p * len(values))(*(x.ctypes.data for x in values))
        sizes = (ctypes.c_uint * 6)(*grid, *block)
        with one_at_a_time:
            file, line = self.skipped
            order = ctypes.c_uint(self.order)
            error = run(pointers, sizes, ctypes.c_size_t(shared), order, file.encode(), ctypes.c_int(line))
        if error is not None:
            raise RuntimeError(f"kernel {kernel} of {source}.cu, grid {grid}, block {block}: {error.decode()}")
        memory.copy_back(kernel)


@cache
def constants(source: str, kernel: str) -> set[str]:
    """The pointers of a kernel through which it only reads."""
    listed = dict(KERNEL.findall(launcher.read(source)))[kernel]
    return {part.split()[-1] for part in listed.split(",") if re.search(r"\bconst\b.*\*", part)}


def addresses_in(table: np.ndarray) -> list[int]:
    """The addresses of arrays that a kernel finds in a table."""
    return [int(address) for address in table.view(np.ndarray).flat if address]


class GuardedMemory:
    """Copies of the arrays with NaN around them: a read there gives NaN, and a write is detected.

    Views that interleave, as those of one packed array do, are copied together.
    """

    def __init__(self, arrays: Sequence[np.ndarray]) -> None:
        self.spans: list[tuple[int, int]] = []
        spans = {byte_bounds(x): x for x in arrays if x.size}
        for start, end in sorted(spans):
            if self.spans and start < self.spans[-1][1]:
                start, end = self.spans[-1][0], max(end, self.spans.pop()[1])
            self.spans.append((start, end))
        self.copies = [guarded(span) for span in self.spans]
        read_only = [span for span, x in spans.items() if not x.flags.writeable]
        self.kept = [any(start <= a and b <= end for a, b in read_only) for start, end in self.spans]

    def argument(self, x: Any) -> np.ndarray:
        """An array that contains the argument: an address, or a number."""
        if x is None:
            return np.zeros(1, np.uint64)
        if not isinstance(x, np.ndarray):
            return np.asarray([x])
        at = x.ctypes.data
        for (start, end), copy in zip(self.spans, self.copies, strict=True):
            if start <= at < end and x.size:
                at += copy.ctypes.data + GUARD - start
                break
        return np.asarray([at], np.uint64)

    def copy_back(self, kernel: str) -> None:
        """Copy the results of the kernel to the arrays."""
        for (start, end), copy, kept in zip(self.spans, self.copies, self.kept, strict=True):
            if not ((copy[:GUARD] == 255).all() and (copy[-GUARD:] == 255).all()):
                raise RuntimeError(f"kernel {kernel}: wrote outside of an array of {end - start} bytes")
            if not kept:
                ctypes.memmove(start, copy.ctypes.data + GUARD, end - start)


def guarded(span: tuple[int, int]) -> np.ndarray:
    """The bytes from one address to another between two guards, at an address that is aligned as the first."""
    start, size = span[0], span[1] - span[0]
    whole = np.full(size + 3 * GUARD, 255, np.uint8)
    first = (start - whole.ctypes.data) % GUARD
    copy = whole[first : first + size + 2 * GUARD]
    ctypes.memmove(copy.ctypes.data + GUARD, start, size)
    return copy


# --- compiling ------------------------------------------------------------------------------------


@cache
def library(source: str, defines: Defines) -> ctypes.CDLL:
    """A .cu file compiled for the CPU, with a function run_NAME for every kernel; kept on disk between runs."""
    written = launcher.read(source)
    text = with_defines(written, dict(defines)) + "\n" + entries(signatures(written, defines))
    digest = hashlib.sha256(f"{compiler_version()} {FLAGS} {text}".encode())
    for path in [*dependencies(path_of(source))[1:], *sorted(HEADERS.iterdir())]:
        digest.update(path.read_bytes())
    path = folder() / f"{source}-{digest.hexdigest()[:32]}.so"
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=folder()) as scratch:
            made = Path(scratch) / path.name
            header = [f"-I{precompiled_header()}", "-include", HEADER]
            command = [str(COMPILER), *header, *FLAGS, "-x", "c++", "-", "-o", str(made)]
            result = subprocess.run(command, input=f'#line 1 "{source}.cu"\n{text}', capture_output=True, text=True)
            if result.returncode:
                raise RuntimeError(f"{source}.cu does not compile for the CPU:\n{result.stderr}")
            os.replace(made, path)
    return ctypes.CDLL(str(path))


@cache
def precompiled_header() -> Path:
    """A folder with the header of the emulation and what it compiles to: a quarter of the time of most sources."""
    text = (HEADERS / HEADER).read_bytes()
    digest = hashlib.sha256(f"{compiler_version()} {FLAGS}".encode() + text).hexdigest()
    path = folder() / f"header-{digest[:32]}"
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=folder()) as scratch:
            made = Path(scratch, "made")
            made.mkdir()
            (made / HEADER).write_bytes(text)
            command = [str(COMPILER), *FLAGS, "-x", "c++-header", str(made / HEADER)]
            subprocess.run(command, capture_output=True, text=True, check=True)
            with suppress(OSError):  # another process was faster
                made.rename(path)
    return path


@cache
def folder() -> Path:
    """The folder for what has been compiled."""
    path = Path(tempfile.gettempdir()) / f"tensorgrad-emulation-{os.getuid()}"
    path.mkdir(mode=0o700, exist_ok=True)
    return path


@cache
def compiler_version() -> str:
    return subprocess.run([str(COMPILER), "--version"], capture_output=True, text=True, check=True).stdout


def entries(kernels: dict[str, tuple[Parameter, ...]]) -> str:
    """C functions that take the arguments as addresses of where they stand, and run a grid of threads."""
    return "\n".join(
        f'extern "C" __attribute__((visibility("default"))) const char* run_{name}('
        "void** a, const unsigned* sizes, std::size_t shared, unsigned order, const char* file, int line) {\n"
        "    emulation::skipped_file = file, emulation::skipped_line = line;\n"
        f"    return emulation::launch(sizes, shared, order, [&] {{ {name}({values(listed)}); }});\n"
        "}"
        for name, listed in kernels.items()
    )


def values(listed: tuple[Parameter, ...]) -> str:
    return ", ".join(f"*static_cast<{p.c_type}{'*' * p.pointer}*>(a[{i}])" for i, p in enumerate(listed))


# --- a whole backend ------------------------------------------------------------------------------


@contextmanager
def emulated_gpu() -> Iterator[CupyBackend]:
    """The CuPy backend over the stand-in for CuPy, its kernels run on the CPU; current until the end of the block."""
    saved = dict(backend._loaded), dict(backend._by_type), backend._current, sys.modules.get("cupy")
    real, library = cupy_backend.CudaLauncher, cublaslt.load
    backend._loaded.pop("cupy", None)
    sys.modules["cupy"] = FakeCupy()
    cupy_backend.CudaLauncher = lambda cupy: EmulatingLauncher()  # type: ignore[assignment, misc]
    cublaslt.load = FakeCublasLt  # type: ignore[assignment]
    try:
        with tg.use_backend("cupy") as chosen:
            assert isinstance(chosen.backend, CupyBackend)
            yield chosen.backend
    finally:
        cupy_backend.CudaLauncher = real  # type: ignore[misc]
        cublaslt.load = library
        for registered, before in ((backend._loaded, saved[0]), (backend._by_type, saved[1])):
            registered.clear()
            registered.update(before)
        backend._current = saved[2]
        reset()
        sys.modules.pop("cupy")
        if saved[3] is not None:
            sys.modules["cupy"] = saved[3]
