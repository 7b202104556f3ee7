"""The gradient of an embedding table."""

from typing import Any

import numpy as np

from tensorgrad.backend.arrays import Array
from tensorgrad.backend.numba.arrays import flat, is_supported, rows
from tensorgrad.backend.numba.compile import inline
from tensorgrad.backend.numba.parallel import ALONE, kernel, prange
from tensorgrad.backend.numpy import NumpyBackend


@inline
def sort_by_row(indices: Any, starts: Any, order: Any, distinct: Any) -> int:
    """Counting sort: order[starts[r] : starts[r + 1]] are the positions, ascending, at which indices has row r.

    It fills starts (V + 1), which must be zeros, order (n), and distinct (n) with the rows that occur in indices (n),
    ascending, and returns the number of these. Negative indices count from the end.
    """
    n_rows, n_distinct = starts.size - 1, 0
    for index in indices:
        starts[index % n_rows] += 1
    total = 0
    for row in range(n_rows):  # counts become the ends of the rows' ranges
        if starts[row]:
            distinct[n_distinct] = row
            n_distinct += 1
        total += starts[row]
        starts[row] = total
    starts[n_rows] = total
    for position in range(indices.size - 1, -1, -1):  # each range is filled from its end, which becomes its start
        row = indices[position] % n_rows
        starts[row] -= 1
        order[starts[row]] = position
    return n_distinct


@kernel
def add_rows(dy: Any, distinct: Any, starts: Any, order: Any, dweight: Any, thread: Any = ALONE) -> None:
    """dweight[r] += the sum of dy at the positions of row r. One thread adds to a row, so no two write to the same."""
    for d in prange(distinct.size, thread):
        total = dweight[distinct[d]]
        for i in range(starts[distinct[d]], starts[distinct[d] + 1]):
            part = dy[order[i]]
            for j in range(total.size):
                total[j] += part[j]


class Embedding(NumpyBackend):
    """The kernel above, for float32 and float64."""

    def add_embedding_backward(self, dweight: Array, dy: Array, indices: Array) -> None:
        """dweight (V, C) += dy (..., C), each row added to the row of its index, in the order of the indices."""
        if not is_supported(dweight, dy) or not dy.size or not dweight.flags.carray:
            super().add_embedding_backward(dweight, dy, indices)
            return
        n_rows, n = len(dweight), indices.size
        starts, order, distinct = np.zeros(n_rows + 1, np.int64), np.empty(n, np.int64), np.empty(n, np.int64)
        n_distinct = sort_by_row(flat(indices.astype(np.int64, copy=False)), starts, order, distinct)
        add_rows(rows(dy), distinct[:n_distinct], starts, order, dweight)
