"""Kernels for the CPU that Numba compiles and runs on all threads; the arrays are NumPy's.

Each file holds the kernels of one family and a class with the methods of `Backend` that call them. For arrays that the
kernels do not support, the methods call those of `NumpyBackend`. Importing this raises BackendUnavailable if Numba is
not installed, and `create` where it cannot run.
"""

import os
from collections.abc import Sequence
from typing import Any

from tensorgrad.backend.numba.activation import Activation
from tensorgrad.backend.numba.attention import Attention
from tensorgrad.backend.numba.compile import require_threads, set_num_threads, use_whole_vectors
from tensorgrad.backend.numba.cross_entropy import CrossEntropy
from tensorgrad.backend.numba.decoder import Decoder
from tensorgrad.backend.numba.dropout import Dropout
from tensorgrad.backend.numba.elementwise import Elementwise
from tensorgrad.backend.numba.embedding import Embedding
from tensorgrad.backend.numba.normalization import Normalization
from tensorgrad.backend.numba.optimizer import Optimization
from tensorgrad.backend.numba.progress import announce_compilation
from tensorgrad.backend.numba.softmax import Softmax
from tensorgrad.backend.runtime import Backend


class NumbaBackend(
    Decoder, Activation, Elementwise, Attention, CrossEntropy, Dropout, Embedding, Normalization, Optimization, Softmax
):
    """Kernels compiled by Numba for float32 and float64; NumPy for other dtypes."""

    name = "numba"

    def compile_ahead(self, kernels: Sequence[str]) -> Any:
        """See `Backend.compile_ahead`; the names are those of compile_ahead.CALLS."""
        from tensorgrad.backend.numba import compile_ahead  # imported here: it imports this package

        return compile_ahead.start(kernels)

    def activate(self) -> None:
        """Use all threads for kernels."""
        super().activate()
        set_num_threads(self.threads)


def create() -> Backend:
    """The backend, for `tensorgrad.backend.load`."""
    # A thread that waits for the next kernel spins for some 10 microseconds and then sleeps. By default it spins for
    # long; if other programs use the cores too, it takes a core from the very thread it waits for. If it slept at
    # once, the system would wake it on the core of the calling thread. OpenMP reads these variables when the first
    # kernel starts. Values that the user has set are kept.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    require_threads()
    use_whole_vectors()
    announce_compilation()
    return NumbaBackend()
