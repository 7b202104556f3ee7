"""Error messages for a missing or outdated driver, and for a GPU without free memory."""

import ctypes
import sys
from typing import Any

LIBRARY = "libcuda.so.1"
NO_DRIVER = (
    f"there is no NVIDIA driver here ({LIBRARY} cannot be loaded): install one and check that nvidia-smi shows "
    "the GPU, or choose numba or numpy"
)
GIB = 2**30


def driver_version() -> tuple[int, int] | None:
    """The newest CUDA version that the installed driver supports, such as (13, 0); None without a driver."""
    number = ctypes.c_int()
    try:
        if ctypes.CDLL(LIBRARY).cuDriverGetVersion(ctypes.byref(number)):
            return None
    except OSError:
        return None
    return number.value // 1000, number.value % 1000 // 10


def is_missing() -> bool:
    """Whether there is certainly no driver: on Linux its library has this one name."""
    return sys.platform == "linux" and driver_version() is None


def why_no_gpu(cupy: Any, error: Exception) -> str:
    """Why CuPy finds no GPU, and what to do, in one line. error: the exception that CuPy raised."""
    driver, required = driver_version(), cupy.cuda.runtime.runtimeGetVersion() // 1000
    if driver is None:
        return NO_DRIVER
    if driver[0] < required:
        extra = f', or pip install -e ".[cuda{driver[0]}]" for the installed driver' if driver[0] == 12 else ""
        return (
            f"the NVIDIA driver is too old: it runs CUDA {driver[0]}.{driver[1]}, and this CuPy needs CUDA {required}: "
            f"update the driver{extra}"
        )
    return (
        f"CuPy is installed but finds no usable GPU ({first_line(error)}): check that nvidia-smi shows one, "
        "and that CUDA_VISIBLE_DEVICES does not hide it"
    )


def first_line(error: Exception) -> str:
    """The first line of the message of an exception, or the name of its type."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


class OutOfMemory(MemoryError):
    """An array does not fit on the GPU; the message says how much was requested and how much is free.

    share: the fraction of the memory in use and requested that the GPU can hold.
    """

    def __init__(self, requested: int, free: int, used: int, total: int) -> None:
        self.share = (used + free) / (used + requested)
        super().__init__(
            f"GPU memory: {_size(requested)} were requested, {_size(free)} of {_size(total)} are free and "
            f"{_size(used)} hold this program's arrays: {_size(free)} would fit"
        )


class Allocator:
    """Allocates from CuPy's memory pool, or from the one given, with an error that says what would fit."""

    def __init__(self, cupy: Any, pool: Any = None) -> None:
        self.cupy = cupy
        self.pool = cupy.get_default_memory_pool() if pool is None else pool

    def __call__(self, size: int) -> Any:
        """Memory for an array. Raises OutOfMemory, after freeing the unused blocks of the pool."""
        try:
            return self.pool.malloc(size)
        except self.cupy.cuda.memory.OutOfMemoryError:
            self.pool.free_all_blocks()
            free, total = self.cupy.cuda.runtime.memGetInfo()
            raise OutOfMemory(size, free, self.pool.used_bytes(), total) from None


def _size(n_bytes: int) -> str:
    return f"{n_bytes / GIB:.2f} GiB" if n_bytes >= GIB // 10 else f"{n_bytes / 2**20:.1f} MiB"
