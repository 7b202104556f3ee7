"""The plain mathematics on NumPy, and what NumPy does better another way."""

from typing import Any

import numpy as np

from tensorgrad.backend.base import Array, Backend


class NumpyBackend(Backend):
    """Kernels over NumPy arrays."""

    name = "numpy"
    xp = np
    array_type = np.ndarray

    def embedding_backward(self, dy: Array, indices: Array, shape: tuple[int, ...]) -> Array:
        """Rows sorted by index and each run summed: the order of the additions is always the same."""
        rows = self.wide(dy).reshape(-1, shape[-1])
        dweight = np.zeros(shape, rows.dtype)
        if rows.size:
            flat = indices.reshape(-1) % shape[0]  # negative indices count from the end
            order = np.argsort(flat, kind="stable")
            distinct, starts = np.unique(flat[order], return_index=True)
            dweight[distinct] = np.add.reduceat(rows[order], starts, axis=0)
        return dweight


def create() -> Backend:
    """The backend, for `tensorgrad.backend.load`."""
    return NumpyBackend()


