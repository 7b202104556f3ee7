"""Activation checkpointing: less memory for more time, by computing a part of the graph again in backward."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tensorgrad.autograd import inplace
from tensorgrad.autograd.inplace import next_sequence, refuse_overwritten
from tensorgrad.autograd.mode import enable_grad, is_grad_enabled
from tensorgrad.autograd.tape import Edge, Node, Variable
from tensorgrad.backend import Array
from tensorgrad.backend.arrays import snapshot
from tensorgrad.random import default_generator
from tensorgrad.tree import tree_leaves, tree_map

_outermost = threading.local()  # since: while a checkpoint is recomputed, the sequence number of the outermost one


def checkpoint(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Return function(*args, **kwargs), saving only the arguments: backward calls the function again.

    Results and gradients are those of an ordinary call, bit for bit, dropout included. The function returns a Tensor,
    or a tuple, list or dict of tensors and anything else. Raises RuntimeError in backward where the second call differs
    from the first: in shapes, in random draws, or by an overwritten input. After Chen et al. 2016, arXiv:1604.06174.
    """
    if not is_grad_enabled():
        return function(*args, **kwargs)
    args, kwargs = tree_map(lambda x: x if x.edge else type(x).wrap(snapshot(x.data)), (args, kwargs), Variable)
    args, kwargs = tree_map(snapshot, (args, kwargs), np.ndarray)
    before, since = default_generator.state_dict(), next_sequence()
    results = function(*args, **kwargs)  # recorded, to learn which results have gradients, and forgotten at once
    outputs, after = _differentiable(results), default_generator.state_dict()
    if not outputs:
        return results
    first = _describe(outputs)

    def recompute() -> list[Edge]:
        now = default_generator.state_dict()
        default_generator.load_state_dict(before)
        try:
            with enable_grad():
                recomputed = _differentiable(function(*args, **kwargs))
            drawn = default_generator.state_dict()
        finally:
            default_generator.load_state_dict(now)
        if (second := _describe(recomputed)) != first:
            raise RuntimeError(f"checkpoint: the function gave {first}, and {second} when recomputed in backward")
        if drawn != after:
            other = "other random numbers than at first; is its module still in the same mode, training or evaluation?"
            raise RuntimeError(f"checkpoint: recomputed in backward, the function drew {other}")
        return [x.edge for x in recomputed if x.edge is not None]

    node = CheckpointNode(outputs, [x.data for x in tree_leaves((args, kwargs), Variable)], recompute, since)
    edges = iter([(node, slot) for slot in range(len(outputs))])
    return tree_map(lambda x: x if x.edge is None else type(x).wrap(x.data, next(edges)), results, Variable)


class CheckpointNode(Node):
    """A whole function as one node. Backward calls the function again, recorded, and goes on in the new graph.

    The new nodes are the latest of all, so that backward visits them next, and gradients are added up in the same order
    as without a checkpoint. parents: the edges from the function to what was there before, once for every use.
    """

    __slots__ = ("inputs", "since")

    def __init__(self, outputs: list[Variable], inputs: list[Array], recompute: Any, since: int) -> None:
        edges = [x.edge for x in outputs if x.edge is not None]
        inside = _recorded_after(edges, since)
        uses = [*edges, *(edge for node in inside for edge in node.parents if edge is not None)]
        parents = tuple(edge for edge in uses if edge[0] not in inside)
        super().__init__("checkpoint", [x.data for x in outputs], parents, recompute)
        self.inputs, self.since = inputs, getattr(_outermost, "since", 0) or self.sequence

    def saved(self) -> Any:
        """Return the arrays of the arguments."""
        return self.inputs

    def pull(self, dys: list[Array | None], retain_graph: bool) -> Iterator[tuple[Edge, Any]]:
        """Yield the gradient of each output at the edge of the same output in the new graph."""
        recompute: Any = self.backward
        if not retain_graph:
            self.backward, self.parents, self.inputs = None, (), []
        written = inplace.last_write  # what is written meanwhile was written at the first time as well
        outer, _outermost.since = getattr(_outermost, "since", 0), self.since
        try:
            edges = recompute()
        finally:
            _outermost.since = outer
        if self.since < written:
            for node in _recorded_after(edges, self.sequence):
                refuse_overwritten(node, self.since)
        yield from ((edge, dy) for edge, dy in zip(edges, dys, strict=True) if dy is not None)


def _recorded_after(edges: list[Edge], since: int) -> set[Node]:
    """Return the nodes with a later sequence number, without leaves, that the edges depend on."""
    waiting, found = list(edges), set()
    while waiting:
        node, _ = waiting.pop()
        if node.sequence > since and not node.is_leaf and node not in found:
            found.add(node)
            waiting += [edge for edge in node.parents if edge is not None]
    return found


def _differentiable(results: Any) -> list[Variable]:
    return [x for x in tree_leaves(results, Variable) if x.edge is not None]


def _describe(tensors: list[Variable]) -> str:
    return ", ".join(f"{x.data.dtype} {x.data.shape}" for x in tensors) or "nothing that has a gradient"
