"""Rows of a table by number."""

from typing import Any

from tensorgrad.autograd import Scattered, op
from tensorgrad.backend import Array, Backend

__all__ = ["embedding"]


@op
def embedding(k: Backend, weight: Array, indices: Array) -> tuple[Array, Any]:
    """Row `indices` of weight: weight (V, C), indices (...) integer -> (..., C). Saves the indices.

    Raises TypeError for indices that are no integers, IndexError for one out of range.
    """
    indices, shape, dtype = k.asarray(indices), weight.shape, weight.dtype
    if weight.ndim != 2:
        raise ValueError(f"embedding: weight {shape} is not a table (V, C)")
    if indices.dtype.kind not in "iu":
        raise TypeError(f"embedding: indices have dtype {indices.dtype}, not an integer one")
    k.check_indices("embedding", indices, shape[0], lowest=0)
    return k.embedding(weight, indices), lambda dy: Scattered(k, dy, indices, shape, dtype)
