"""The gradient of an embedding: rows with the same index are sorted next to each other, then summed."""

import numpy as np

from tensorgrad.backend.arrays import Array, as_rows
from tensorgrad.backend.numpy.blocks import Blocks


class Embedding(Blocks):
    """Faster than NumPy's `add.at`, which adds row by row."""

    def embedding_backward(self, dy: Array, indices: Array, shape: tuple[int, ...]) -> Array:
        dweight = np.zeros(shape, self.wide(dy[:0]).dtype)
        self.add_embedding_backward(dweight, dy, indices)
        return dweight

    def add_embedding_backward(self, dweight: Array, dy: Array, indices: Array) -> None:
        """dweight += the same; the order of the additions is always the same."""
        rows = as_rows(self.wide(dy))
        if rows.size:
            flat = indices.reshape(-1).astype(np.int64) % len(dweight)  # negative indices count from the end
            order = np.argsort(flat, kind="stable")
            distinct, starts = np.unique(flat[order], return_index=True)
            dweight[distinct] += np.add.reduceat(rows[order], starts, axis=0)
