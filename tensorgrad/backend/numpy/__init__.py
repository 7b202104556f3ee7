"""The NumPy backend: the kernels of `math.py`, some of them faster because they work in blocks, on all threads.

There is one file for each family of kernels. Its functions compute one block in place, and its class decides which
arrays they are used for. `math.py` says what the methods compute, and does so for all other arrays and kernels.
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


class NumpyBackend(Activation, Attention, CrossEntropy, Elementwise, Embedding, Linear, Normalization, Optimization):
    """Kernels over NumPy arrays. NumPy releases the GIL while it computes, so blocks run on all cores."""

    name = "numpy"
    xp = np
    array_type = np.ndarray

    def activate(self) -> None:
        """Let only the threads of `team` compute."""
        blas.use_threads(1)
