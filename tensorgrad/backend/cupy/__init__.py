"""The backend for NVIDIA GPUs: CuPy's arrays, and CUDA kernels where they are faster than `math.py` on CuPy.

Every family of kernels has a .cu file, and beside it a class with the methods that launch them. `math.py` says what the
methods compute, and does so for arrays without a kernel. CuPy is imported only when this backend is loaded.
"""

import contextlib
import importlib.util
import sys
from typing import Any

import numpy as np

from tensorgrad.backend.arrays import Array, is_half
from tensorgrad.backend.cupy import driver
from tensorgrad.backend.cupy.cross_entropy import CrossEntropy
from tensorgrad.backend.cupy.decoder import Decoder
from tensorgrad.backend.cupy.driver import Allocator, first_line, why_no_gpu
from tensorgrad.backend.cupy.embedding import Embedding
from tensorgrad.backend.cupy.graph import Graphs
from tensorgrad.backend.cupy.launcher import CudaLauncher, Launcher
from tensorgrad.backend.cupy.sampling import Sampling
from tensorgrad.backend.cupy.softmax import Softmax
from tensorgrad.backend.cupy.transfer import Transfer
from tensorgrad.backend.runtime import Backend, BackendUnavailable

EXTRAS = 'pip install -e ".[cuda13]" (cuda12 for a driver of CUDA 12)'


class CupyBackend(CrossEntropy, Decoder, Embedding, Graphs, Sampling, Softmax, Transfer):
    """Kernels over CuPy arrays."""

    name = "cupy"

    def __init__(self, cupy: Any, launcher: Launcher) -> None:
        self.xp = cupy
        self.array_type = cupy.ndarray
        self.launcher = launcher

    def to_numpy(self, x: Array) -> Any:
        """Copy to a NumPy array on the host; waits for the GPU."""
        return self.xp.asnumpy(x)

    def asarray(self, x: Any, dtype: Any = None) -> Array:
        """An array of this backend; a Python number in half precision is written by kernels, which can be recorded."""
        if type(x) is float and dtype is not None and is_half(np.dtype(dtype)):
            return self.xp.full((), x, "float32").astype(dtype)
        return super().asarray(x, dtype)

    def check_indices(self, name: str, indices: Array, n: int, lowest: int | None = None) -> None:
        """Do nothing: a check would have to wait for the GPU. CuPy wraps indices around that are out of range."""

    def where(self, condition: Array, a: Any, b: Any) -> Array:
        """a where condition holds, b elsewhere; CuPy would convert bfloat16 to float32."""
        return self.xp.where(condition, a, b).astype(self.xp.result_type(a, b), copy=False)


def create() -> Backend:
    """The backend, for `tensorgrad.backend.load`. Raises BackendUnavailable without CuPy or without a usable GPU."""
    if "cupy" not in sys.modules and importlib.util.find_spec("cupy") and driver.is_missing():
        raise BackendUnavailable(driver.NO_DRIVER)  # before CuPy is imported, which takes 0.2 s
    with contextlib.suppress(ModuleNotFoundError):
        import ml_dtypes
    try:
        import cupy
    except ModuleNotFoundError as error:
        if error.name != "cupy":
            raise
        raise BackendUnavailable(f"CuPy is not installed: {EXTRAS}") from None
    except ImportError as error:
        raise BackendUnavailable(f"CuPy is installed but fails to import ({first_line(error)}): {EXTRAS}") from error
    try:
        n_gpus = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise BackendUnavailable(why_no_gpu(cupy, error)) from error
    if n_gpus == 0:
        raise BackendUnavailable("CuPy is installed but there is no GPU: choose numba or numpy")
    cupy.cuda.set_allocator(Allocator(cupy))
    return CupyBackend(cupy, CudaLauncher(cupy))
