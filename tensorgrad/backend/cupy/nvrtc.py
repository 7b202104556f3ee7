"""NVRTC, NVIDIA's run-time compiler: CUDA source -> machine code for one architecture, without a GPU or a driver.

CuPy uses NVRTC too, but needs a device to compile. Called through ctypes, the tests on a machine without a GPU compile
the same code.
"""

import contextlib
import ctypes
import functools
import importlib.util
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

MISSING = 'pip install -e ".[cuda13]" (cuda12 for a driver of CUDA 12)'
SONAMES = ("libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so")


class CompilationError(RuntimeError):
    """Source does not compile; the message is that of the compiler."""


class Missing(RuntimeError):
    """NVRTC or the CUDA headers are missing; the message says what to install."""


def _folders() -> Iterator[Path]:
    """The folders of NVIDIA's packages and of CUDA that may contain lib/ or include/."""
    spec = importlib.util.find_spec("nvidia")
    for place in map(Path, (spec.submodule_search_locations or []) if spec else []):
        yield from sorted((folder for folder in place.glob("*") if folder.is_dir()), reverse=True)
    for name in ("CUDA_HOME", "CUDA_PATH"):
        if os.environ.get(name):
            yield Path(os.environ[name])
    yield Path("/usr/local/cuda")


@functools.cache
def library() -> ctypes.CDLL:
    """The NVRTC library, from NVIDIA's packages or an installed CUDA. Raises Missing."""
    candidates = [folder / lib / name for folder in _folders() for lib in ("lib", "lib64") for name in SONAMES]
    for path in [*(path for path in candidates if path.exists()), *map(Path, SONAMES)]:
        with contextlib.suppress(OSError):
            for part in sorted(path.parent.glob("libnvrtc-builtins.so*")):  # NVRTC would not find it
                ctypes.CDLL(str(part))
            return ctypes.CDLL(str(path))
    raise Missing(f"NVRTC, which compiles the kernels, is not installed: {MISSING}")


@functools.cache
def include_folders() -> tuple[str, ...]:
    """The folder of CUDA's headers. Raises Missing."""
    found = [str(folder / "include") for folder in _folders() if (folder / "include" / "cuda_fp16.h").exists()]
    if not found:
        raise Missing(f"CUDA's headers (cuda_fp16.h) are not installed: {MISSING}")
    return (found[0],)


@functools.cache
def version() -> tuple[int, int]:
    """NVRTC's version: (13, 0)."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    _check(library().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)), "nvrtcVersion")
    return major.value, minor.value


@functools.cache
def architectures() -> tuple[int, ...]:
    """The compute capabilities that this NVRTC supports, times ten: (75, 80, 86 ...)."""
    count = ctypes.c_int()
    _check(library().nvrtcGetNumSupportedArchs(ctypes.byref(count)), "nvrtcGetNumSupportedArchs")
    numbers = (ctypes.c_int * count.value)()
    _check(library().nvrtcGetSupportedArchs(numbers), "nvrtcGetSupportedArchs")
    return tuple(sorted(numbers))


def compile_cubin(name: str, source: str, options: Sequence[str]) -> tuple[bytes, str]:
    """Machine code of `source`, and the log of the compiler.

    name: the name of the source in messages. options: must include -arch=sm_NN. Raises CompilationError with the log.
    """
    nvrtc, program = library(), ctypes.c_void_p()
    text = source.encode()
    _check(nvrtc.nvrtcCreateProgram(ctypes.byref(program), text, name.encode(), 0, None, None), "nvrtcCreateProgram")
    try:
        given = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        status = nvrtc.nvrtcCompileProgram(program, len(options), given)
        log = _read(program, "ProgramLog").rstrip(b"\0").decode(errors="replace").strip()
        if status:
            raise CompilationError(f"{name} does not compile with {' '.join(options)}:\n{log or _message(status)}")
        return _read(program, "CUBIN"), log
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _read(program: ctypes.c_void_p, what: str) -> bytes:
    size = ctypes.c_size_t()
    _check(getattr(library(), f"nvrtcGet{what}Size")(program, ctypes.byref(size)), what)
    buffer = ctypes.create_string_buffer(size.value)
    _check(getattr(library(), f"nvrtcGet{what}")(program, buffer), what)
    return buffer.raw


def _check(status: int, what: str) -> None:
    if status:
        raise CompilationError(f"NVRTC: {what}: {_message(status)}")


def _message(status: int) -> str:
    describe = library().nvrtcGetErrorString
    describe.restype = ctypes.c_char_p
    return str(describe(status).decode())
