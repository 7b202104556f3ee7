"""Rows of a table by index, and their gradient, which is 0 in every other row."""

from dataclasses import dataclass
from typing import Any

from tensorgrad.autograd import SparseGradient, op
from tensorgrad.backend import Array, Backend
from tensorgrad.backend.arrays import snapshot

__all__ = ["embedding"]


@dataclass(frozen=True, slots=True)
class RowGradient(SparseGradient):
    """The gradient of a table (V, C): `dy`, to be added to the rows `indices`, and 0 elsewhere.

    If the table has a gradient already, as when an output layer shares it, only those rows are read and written.
    """

    k: Backend
    dy: Array
    indices: Array
    shape: tuple[int, ...]

    def dense(self) -> Array:
        return self.k.embedding_backward(self.dy, self.indices, self.shape)  # at least float32: the tape rounds it

    def add_to(self, dweight: Array) -> None:
        self.k.add_embedding_backward(dweight, self.dy, self.indices)


@op
def embedding(k: Backend, weight: Array, indices: Array) -> tuple[Array, Any]:
    """The rows `indices` of weight: weight (V, C), indices (...) integer -> (..., C). Saves the indices.

    Raises TypeError for indices that are not integers, IndexError for one out of range.
    dweight = for every row of weight, the sum of the rows of dy whose index it is.
    """
    indices, shape = snapshot(k.asarray(indices)), weight.shape
    if weight.ndim != 2:
        raise ValueError(f"embedding: weight {shape} is not a table (V, C)")
    if indices.dtype.kind not in "iu":
        raise TypeError(f"embedding: indices have dtype {indices.dtype}; an integer dtype is needed")
    k.check_indices("embedding", indices, shape[0], lowest=0)
    return k.embedding(weight, indices), lambda dy: RowGradient(k, dy, indices, shape)
