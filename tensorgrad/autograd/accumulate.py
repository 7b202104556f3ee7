"""Adding up gradients: what has arrived at each node, and which of the sums may be written into."""

import heapq
from typing import TYPE_CHECKING, Any

import numpy as np

from tensorgrad.backend import Array, backend_of

if TYPE_CHECKING:
    from tensorgrad.autograd.tape import Edge, Node


class Accumulator:
    """Gradients that have arrived at nodes not yet visited.

    A backward returns dy itself, a view, or an array that it made: only the last is owned, and may be written into.
    It may also return a sparse gradient, anything with `dense()`, the whole array, and `add_to(array)`, which adds it
    in place: where a leaf has a gradient already, only the rows that are not zero are touched.
    """

    def __init__(self) -> None:
        self.heap: list[tuple[int, Node]] = []
        self.sums: dict[Node, list[Array | None]] = {}  # one for each output of the node
        self.owned: set[Edge] = set()  # whose sum nothing else refers to

    def pop(self) -> "tuple[Node, list[Array | None]]":
        """Return the latest node, and the gradients of its outputs, None for those that were not used."""
        node = heapq.heappop(self.heap)[1]  # in topological order: whatever uses an output is later than its node
        dys = self.sums.pop(node)
        for slot in range(len(dys)):
            self.owned.discard((node, slot))
        return node, dys

    def add(self, edge: "Edge", gradient: Any, dys: list[Array | None]) -> None:
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
        owned = _is_owned(gradient, dys)
        if before is None:
            sums[slot] = gradient
        elif edge in self.owned:
            backend_of("backward", [before]).add_to(before, gradient)
            return
        elif owned:
            backend_of("backward", [before]).add_to(gradient, before)
            sums[slot] = gradient
        else:
            sums[slot] = backend_of("backward", [before]).add(before, gradient)
            owned = True
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


def _as_output(gradient: Any, node: "Node", slot: int) -> Array:
    """The gradient as an array of the output's dtype. Raises RuntimeError where it has another shape."""
    if hasattr(gradient, "add_to"):
        gradient = gradient.dense()
    if isinstance(gradient, np.generic):  # NumPy makes scalars of 0-d results
        gradient = np.asarray(gradient)
    if gradient.dtype != node.dtypes[slot]:
        gradient = gradient.astype(node.dtypes[slot])
    if gradient.shape != node.shapes[slot]:
        shapes = f"gradient of shape {gradient.shape} for an output of shape {node.shapes[slot]}"
        raise RuntimeError(f"{node.name}: {shapes}")
    return gradient


def _is_owned(gradient: Array, dys: list[Array | None]) -> bool:
    return gradient.base is None and not any(gradient is dy for dy in dys)
