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
        self.sums: dict[Any, tuple[list[Array | None], list[bool]]] = {}  # of each output, and whether it is owned

    def pop(self) -> tuple[Any, list[Array | None]]:
        """Return the latest node, and the gradients of its outputs, None for those that were not used."""
        node = heapq.heappop(self.heap)[1]  # in topological order: whatever uses an output is later than its node
        return node, self.sums.pop(node)[0]

    def add(self, edge: tuple[Any, int], gradient: Any, dys: list[Array | None]) -> None:
        """Add what a backward returned for `dys` to a leaf's gradient, or to what has arrived at a node's output."""
        node, slot = edge
        if type(gradient) is not type(dys[0]):
            if isinstance(gradient, SparseGradient):
                if node.is_leaf and node.grad is not None:
                    gradient.add_to(node.grad)
                    return
                gradient = gradient.dense()
            elif isinstance(gradient, np.generic):  # NumPy makes scalars of 0-d results
                gradient = np.asarray(gradient)
        shape, dtype = (node.shape, node.dtype) if node.outputs is None else node.outputs[slot]
        if gradient.dtype != dtype:
            gradient = gradient.astype(dtype)
        if gradient.shape != shape:
            raise RuntimeError(f"{node.name}: gradient of shape {gradient.shape} for an output of shape {shape}")
        is_dy = gradient is dys[0] or (len(dys) > 1 and any(gradient is dy for dy in dys))
        owned = not is_dy and gradient.base is None
        if node.is_leaf:
            if node.grad is None:
                node.grad = gradient if owned else gradient.copy()
            else:
                backend_of("backward", [node.grad]).add_to(node.grad, gradient)
            return
        if node not in self.sums:
            heapq.heappush(self.heap, (-node.sequence, node))
            n = 1 if node.outputs is None else len(node.outputs)
            self.sums[node] = [None] * n, [False] * n
        sums, is_owned = self.sums[node]
        before = sums[slot]
        if before is not None:
            k = backend_of("backward", [before])
            if is_owned[slot]:
                k.add_to(before, gradient)
                return
            if owned:
                k.add_to(gradient, before)
            else:
                gradient, owned = k.asarray(k.add(before, gradient)), True  # NumPy adds 0-d arrays to a scalar
        sums[slot], is_owned[slot] = gradient, owned
