"""The gradient of an embedding: rows that belong together are put side by side first, and then added."""

import numpy as np

from tensorgrad.backend.arrays import Array, as_rows
from tensorgrad.backend.numpy.blocks import Blocks


class Embedding(Blocks):
    """Where NumPy's `add.at` goes row by row."""

    def embedding_backward(self, dy: Array, indices: Array, shape: tuple[int, ...]) -> Array:
        """dweight (V, C): every row's dy added to the row it was read from."""
        dweight = np.zeros(shape, self.wide(dy[:0]).dtype)
        self.add_embedding_backward(dweight, dy, indices)
        return dweight

    def add_embedding_backward(self, dweight: Array, dy: Array, indices: Array) -> None:
        """Rows sorted by index and each run summed: the order of the additions is always the same."""
        rows = as_rows(self.wide(dy))
        if rows.size:
            flat = indices.reshape(-1).astype(np.int64) % len(dweight)  # negative indices count from the end
            order = np.argsort(flat, kind="stable")
            distinct, starts = np.unique(flat[order], return_index=True)
            dweight[distinct] += np.add.reduceat(rows[order], starts, axis=0)
