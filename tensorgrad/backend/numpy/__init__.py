"""The plain mathematics on NumPy, and what NumPy does better another way: block by block, on all threads.

One file a family: its functions work on a block, in place, and a class says for which arrays they are. Everything else
is the mathematics of `math.py` as it stands there.
"""

import numpy as np

from tensorgrad.backend import blas
from tensorgrad.backend.numpy.activation import Activation
from tensorgrad.backend.numpy.attention import Attention
from tensorgrad.backend.numpy.cross_entropy import CrossEntropy
from tensorgrad.backend.numpy.elementwise import Elementwise
from tensorgrad.backend.numpy.embedding import Embedding
from tensorgrad.backend.numpy.linear import Linear
from tensorgrad.backend.numpy.normalization import Normalization
from tensorgrad.backend.numpy.optimizer import Optimization
from tensorgrad.backend.runtime import Backend
from tensorgrad.memory import keep_freed_memory


class NumpyBackend(
    Activation, Attention, CrossEntropy, Elementwise, Embedding, Linear, Normalization, Optimization
):  # fmt: skip
    """Kernels over NumPy arrays. NumPy lets go of the interpreter while it computes, so blocks run on all cores."""

    name = "numpy"
    xp = np
    array_type = np.ndarray

    def activate(self) -> None:
        """Keep freed memory for the next step, and use the threads of `team` alone."""
        keep_freed_memory()
        blas.use_threads(1)


def create() -> Backend:
    """The backend, for `tensorgrad.backend.load`."""
    return NumpyBackend()
