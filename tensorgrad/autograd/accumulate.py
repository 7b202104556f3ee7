"""Adding up gradients: what has arrived at each node, and which of the sums may be written into."""

import heapq
from typing import Any

import numpy as np

from tensorgrad.backend import Array, backend_of


class Accumulator:
    """Gradients that have arrived at nodes not yet visited.

    A backward returns dy itself, a view, or an array that it made: only the last is owned, and may be written into.
    It may also return a sparse gradient, anything with `dense()`, the whole array, and `add_to(array)`, which adds it
    in place: where a leaf has a gradient already, only the rows that are not zero are touched.
    """

    def __init__(self) -> None:
        self.heap: list[tuple[int, Any]] = []  # the latest node first: its sequence number, negative, and the node
        self.sums: dict[Any, list[Array | None]] = {}  # node -> a sum for each of its outputs
        self.owned: set[tuple[Any, int]] = set()  # edges whose sum nothing else refers to

    def pop(self) -> tuple[Any, list[Array | None]]:
        """Return the latest node, and the gradients of its outputs, None for those that were not used."""
        node = heapq.heappop(self.heap)[1]  # in topological order: whatever uses an output is later than its node
        dys = self.sums.pop(node)
        self.owned -= {(node, slot) for slot in range(len(dys))}
        return node, dys

    def add(self, edge: tuple[Any, int], gradient: Any, dys: list[Array | None]) -> None:
        """Add what a backward returned for `dys` to a leaf's gradient, or to what has arrived at a node's output."""
        node, slot = edge
        if node.is_leaf:
            _add_to_leaf(node, gradient, dys)
            return
        sums = self.sums.get(node)
        if sums is None:
            heapq.heappush(self.heap, (-node.sequence, node))
            sums = self.sums[node] = [None] * len(node.shapes)
        before, gradient = sums[slot], _as_output(gradient, node, slot)
        if edge in self.owned:
            backend_of("backward", [before]).add_to(before, gradient)
            return
        owned = _is_owned(gradient, dys)
        if before is not None and owned:
            backend_of("backward", [before]).add_to(gradient, before)
        elif before is not None:
            gradient, owned = backend_of("backward", [before]).add(before, gradient), True
        sums[slot] = gradient
        if owned:
            self.owned.add(edge)


def _add_to_leaf(leaf: Any, gradient: Any, dys: list[Array | None]) -> None:
    if leaf.grad is not None and hasattr(gradient, "add_to"):
        gradient.add_to(leaf.grad)
        return
    gradient = _as_output(gradient, leaf, 0)
    if leaf.grad is None:
        leaf.grad = gradient if _is_owned(gradient, dys) else gradient.copy()
    else:
        backend_of("backward", [leaf.grad]).add_to(leaf.grad, gradient)


def _as_output(gradient: Any, node: Any, slot: int) -> Array:
    """The gradient as an array of the output's dtype. Raises RuntimeError where it has another shape."""
    if hasattr(gradient, "add_to"):
        gradient = gradient.dense()
    if isinstance(gradient, np.generic):  # NumPy makes scalars of 0-d results
        gradient = np.asarray(gradient)
    if gradient.dtype != node.dtypes[slot]:
        gradient = gradient.astype(node.dtypes[slot])
    if gradient.shape != node.shapes[slot]:
        raise RuntimeError(f"{node.name}: gradient of shape {gradient.shape} for an output of {node.shapes[slot]}")
    return gradient


def _is_owned(gradient: Array, dys: list[Array | None]) -> bool:
    return gradient.base is None and not any(gradient is dy for dy in dys)
