"""The gradient of a table whose rows were read by number."""

from typing import Any

import numpy as np

from tensorgrad.backend.arrays import Array
from tensorgrad.backend.numba.arrays import flat, is_supported, rows
from tensorgrad.backend.numba.compile import inline, kernel, prange
from tensorgrad.backend.numpy import NumpyBackend


@inline
def sort_by_row(indices: Any, starts: Any, order: Any, distinct: Any) -> int:
    """Counting sort: order[starts[r] : starts[r + 1]] are the places, ascending, at which row r was read.

    indices (n), from the end where negative -> fills starts (V + 1), given as zeros, order (n), and distinct (n) with
    the rows that were read at all, ascending. Returns how many those are.
    """
    n_rows, n_distinct = starts.size - 1, 0
    for index in indices:
        starts[index % n_rows] += 1
    total = 0
    for row in range(n_rows):  # counts become the ends of the runs
        if starts[row]:
            distinct[n_distinct] = row
            n_distinct += 1
        total += starts[row]
        starts[row] = total
    starts[n_rows] = total
    for place in range(indices.size - 1, -1, -1):  # filled from their ends, which become their starts
        row = indices[place] % n_rows
        starts[row] -= 1
        order[starts[row]] = place
    return n_distinct


@kernel
def add_rows(dy: Any, distinct: Any, starts: Any, order: Any, dweight: Any) -> None:
    """dweight[r] += the sum of dy where row r was read: one thread a row, so that no two ever add to the same one."""
    for d in prange(distinct.size):
        total = dweight[distinct[d]]
        for i in range(starts[distinct[d]], starts[distinct[d] + 1]):
            part = dy[order[i]]
            for j in range(total.size):
                total[j] += part[j]


class Embedding(NumpyBackend):
    """The kernel above, for float32 and float64."""

    def add_embedding_backward(self, dweight: Array, dy: Array, indices: Array) -> None:
        """dweight (V, C) += every row's dy added to the row it was read from, in the order of reading."""
        if not is_supported(dweight, dy) or not dy.size or not dweight.flags.carray:
            super().add_embedding_backward(dweight, dy, indices)
            return
        n_rows, n = len(dweight), indices.size
        starts, order, distinct = np.zeros(n_rows + 1, np.int64), np.empty(n, np.int64), np.empty(n, np.int64)
        n_distinct = sort_by_row(flat(indices.astype(np.int64, copy=False)), starts, order, distinct)
        add_rows(rows(dy), distinct[:n_distinct], starts, order, dweight)
