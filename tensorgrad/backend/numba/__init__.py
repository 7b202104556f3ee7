"""Compiled, multi-threaded kernels for the CPU, over the same NumPy arrays as the plain mathematics.

One file a family, each with its kernels and, in a class, the arrays they are for; everything else is left to
`NumpyBackend`. Importing this raises BackendUnavailable where Numba is missing.
"""

import os

from tensorgrad.backend.numba.activation import Activation
from tensorgrad.backend.numba.attention import Attention
from tensorgrad.backend.numba.compile import set_num_threads, use_whole_vectors
from tensorgrad.backend.numba.cross_entropy import CrossEntropy
from tensorgrad.backend.numba.dropout import Dropout
from tensorgrad.backend.numba.elementwise import Elementwise
from tensorgrad.backend.numba.embedding import Embedding
from tensorgrad.backend.numba.normalization import Normalization
from tensorgrad.backend.numba.optimizer import Optimization
from tensorgrad.backend.numba.progress import announce_compilation
from tensorgrad.backend.numba.softmax import Softmax
from tensorgrad.backend.runtime import Backend


class NumbaBackend(
    Activation, Elementwise, Attention, CrossEntropy, Dropout, Embedding, Normalization, Optimization, Softmax
):
    """Kernels compiled by Numba for float32 and float64; the plain mathematics for all else."""

    name = "numba"

    def compile_ahead(self) -> None:
        """Have a second process compile what the end of a first training step needs."""
        from tensorgrad.backend.numba import compile_ahead  # it loads this backend

        compile_ahead.start()

    def activate(self) -> None:
        """Use all threads for kernels."""
        super().activate()
        set_num_threads(self.threads)


def create() -> Backend:
    """The backend, for `tensorgrad.backend.load`."""
    # A thread that waits for the next kernel spins for some 10 microseconds, then sleeps. By default it spins for
    # long, and where another program wants the core too, takes it from the thread it is waiting for; where it sleeps at
    # once, the system wakes it on the core of the thread that called it. OpenMP reads this when the first kernel
    # starts; what the user has set stays.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    use_whole_vectors()
    announce_compilation()
    return NumbaBackend()
