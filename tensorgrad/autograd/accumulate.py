"""Adding up gradients: what has arrived at each node, and which of the sums may be written into."""

import heapq
from typing import Any

import numpy as np

from tensorgrad.backend import Array, backend_of


class SparseGradient:
    """What a backward may return in place of an array of which only a few rows are not zero."""

    def dense(self) -> Array:
        """Return the whole array."""

    def add_to(self, gradient: Array) -> None:
        """Add it to a whole array, in place: the other rows are not touched."""


class Accumulator:
    """Gradients that have arrived at nodes not yet visited.

    A backward returns dy itself, a view, or an array that it made: only the last is owned, and may be written into.
    """

    def __init__(self) -> None:
        self.heap: list[tuple[int, Any]] = []  # the latest node first: its sequence number, negative, and the node
        self.sums: dict[Any, list[Array | None]] = {}  # node -> a sum for each of its outputs
        self.owned: set[int] = set()  # the ids of the sums that nothing else refers to

    def pop(self) -> tuple[Any, list[Array | None]]:
        """Return the latest node, and the gradients of its outputs, None for those that were not used."""
        node = heapq.heappop(self.heap)[1]  # in topological order: whatever uses an output is later than its node
        dys = self.sums.pop(node)
        for dy in dys:
            self.owned.discard(id(dy))
        return node, dys

    def add(self, edge: tuple[Any, int], gradient: Any, dys: list[Array | None]) -> None:
        """Add what a backward returned for `dys` to a leaf's gradient, or to what has arrived at a node's output."""
        (node, slot), sums = edge, None
        if node.is_leaf:
            before = node.grad
        else:
            sums = self.sums.get(node)
            if sums is None:
                heapq.heappush(self.heap, (-node.sequence, node))
                sums = self.sums[node] = [None] * (1 if node.outputs is None else len(node.outputs))
            before = sums[slot]
        if isinstance(gradient, SparseGradient):
            if sums is None and before is not None:
                gradient.add_to(before)
                return
            gradient = gradient.dense()
        if isinstance(gradient, np.generic):  # NumPy makes scalars of 0-d results
            gradient = np.asarray(gradient)
        shape, dtype = (node.shape, node.dtype) if node.outputs is None else node.outputs[slot]
        if gradient.dtype != dtype:
            gradient = gradient.astype(dtype)
        if gradient.shape != shape:
            raise RuntimeError(f"{node.name}: gradient of shape {gradient.shape} for an output of shape {shape}")
        owned = gradient.base is None and gradient is not dys[0] and (len(dys) == 1 or not _is_one_of(gradient, dys))
        if before is not None:
            k = backend_of("backward", [before])
            if sums is None or id(before) in self.owned:
                k.add_to(before, gradient)
                return
            if owned:
                k.add_to(gradient, before)
            else:
                gradient, owned = k.add(before, gradient), True
        if sums is None:
            node.grad = gradient if owned else gradient.copy()
            return
        sums[slot] = gradient
        if owned:
            self.owned.add(id(gradient))


def _is_one_of(array: Array, arrays: list[Array | None]) -> bool:
    return any(array is other for other in arrays)
