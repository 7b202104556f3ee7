"""The tape: which op made which array, and how gradients flow back along it.

An op is a pure function over arrays that returns its result and its backward function:

    @op
    def exp(k, x):
        y = k.xp.exp(x)
        return y, lambda dy: dy * y

Every call records one `Node`. A node refers to the nodes that made its operands, never to a tensor, so that a result
which nobody keeps is freed at once. It saves for backward exactly what the backward function closes over.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from itertools import zip_longest
from typing import Any, TypeAlias

import numpy as np

from tensorgrad.autograd import inplace
from tensorgrad.autograd.accumulate import Accumulator
from tensorgrad.autograd.arguments import Arguments
from tensorgrad.autograd.context import Context
from tensorgrad.autograd.inplace import next_sequence, refuse_overwritten
from tensorgrad.autograd.mode import mode
from tensorgrad.backend import Array, as_operand, backend_of
from tensorgrad.calls import error_in_op

Edge: TypeAlias = tuple["Node", int]  # output number `slot` of a node


class Variable:
    """What the tape knows of a tensor: its array, and the edge that its gradient flows to (None: no gradient)."""

    __slots__ = ("data", "edge")

    data: Array
    edge: Edge | None

    @property
    def node(self) -> "Node | None":
        """The node that made it."""
        return None if self.edge is None else self.edge[0]

    @classmethod
    def wrap(cls, data: Array, edge: Edge | None = None) -> Any:
        """Return a tensor of an array, as it is, whose gradient flows to that edge."""
        x = cls.__new__(cls)
        x.data, x.edge = data, edge
        return x


class Node:
    """One recorded op.

    sequence: a number that grows with every recorded op: the nodes of the operands have smaller ones.
    shape, dtype: of its output. outputs: where the op returned a list, the (shape, dtype) of each; else None.
    parents: for every operand the edge that its gradient flows to, None where no gradient is needed.
    backward: one function from dy to the gradients of all operands, or one for each operand; None once freed.
    """

    __slots__ = ("backward", "dtype", "name", "outputs", "parents", "sequence", "shape")
    is_leaf = False

    def __init__(self, name: str, result: Any, parents: Sequence[Edge | None], backward: Any) -> None:
        self.sequence = next_sequence()
        self.name = name
        self.outputs = [(y.shape, y.dtype) for y in result] if type(result) is list else None
        self.shape: Any = result.shape if self.outputs is None else None
        self.dtype: Any = result.dtype if self.outputs is None else None
        self.parents = parents
        self.backward = backward

    def saved(self) -> Any:
        """What it keeps for backward: arrays, or anything that refers to them."""
        return self.backward

    def pull(self, dys: list[Array | None], retain_graph: bool) -> Iterable[tuple[Edge | None, Any]]:
        """Return the edge and the gradient of each operand, from the gradients `dys` of the outputs."""
        backward, parents, dy = self.backward, self.parents, dys[0] if self.outputs is None else dys
        if not retain_graph:
            self.backward, self.parents = None, ()
        if type(backward) is tuple:  # one gradient at a time
            return ((edge, f and f(dy)) for edge, f in zip_longest(parents, backward) if edge is not None)
        gradients = backward(dy)
        gradients = gradients if type(gradients) is tuple else (gradients,)
        if len(gradients) > len(parents) and any(gradient is not None for gradient in gradients[len(parents) :]):
            raise RuntimeError(f"{self.name}: {len(gradients)} gradients for {len(parents)} operands")
        return zip_longest(parents, gradients)


class Leaf(Node):
    """Where gradients end: holds the gradient of a tensor that the user made."""

    __slots__ = ("grad",)
    is_leaf = True

    def __init__(self, array: Array) -> None:
        super().__init__("leaf", array, (), None)
        self.grad: Array | None = None


def op(fn: Callable[..., tuple[Any, Any]]) -> Callable[..., Any]:
    """Turn `fn(k, *operands, **options) -> (result, backward)` into a function over tensors.

    k: the backend of the operands' arrays. Operands are tensors, arrays or Python numbers, at least one of them a
    tensor; fn gets their arrays. Options are keyword-only in fn. An fn that names `ctx` is given a `Context`.
    result: an array, or a list of arrays for a list of tensors. backward: see `Node`; None for an op without gradient.
    It returns dy itself, a view, or a new array that it does not keep: never an array that it saved.
    Raises TypeError for arguments that do not fit, ValueError with the op's name and shapes where fn raises one.
    """
    name = fn.__name__.lstrip("_")  # `_concat` is the op inside the function `concat`
    arguments = Arguments(name, fn)

    @functools.wraps(fn)
    def apply(*operands: Any, **options: Any) -> Any:
        if options or len(operands) > arguments.n_operands:
            operands, options = arguments.sort(operands, options)
        arrays, edges = [], []
        kind, needs_grad, has_float = None, False, False
        for x in operands:
            if isinstance(x, Variable):
                kind = type(x)
                arrays.append(x.data)
                edges.append(x.edge)
                needs_grad = needs_grad or x.edge is not None
            else:
                arrays.append(x if x is None else as_operand(name, x))
                edges.append(None)
                has_float = has_float or type(x) is float
        if kind is None:
            raise TypeError(f"{name}: no operand is a Tensor, got {', '.join(type(x).__name__ for x in operands)}")
        k, observers, recording = backend_of(name, arrays), mode.observers, mode.recording
        if has_float:
            arrays = k.weak_scalars(arrays)
        for observer in observers:
            k, arrays = observer.before_op(name, k, arrays)
        if arguments.takes_ctx:
            options["ctx"] = Context(arrays, edges, arguments.n_operands, recording)
        try:
            result, backward = fn(k, *arrays, **options)
        except (ValueError, TypeError) as error:
            if str(error).startswith(f"{name}:"):
                raise
            raise error_in_op(name, arrays, error) from error
        if not (needs_grad and recording):
            backward = None
        elif type(backward) is tuple:  # what only the gradient of a frozen operand needs is freed here
            backward = tuple([f if edge else None for f, edge in zip(backward, edges, strict=False)])
        if type(result) is list:
            result = [np.asarray(y) if isinstance(y, np.generic) else y for y in result]
        elif isinstance(result, np.generic):  # NumPy makes scalars of 0-d arrays
            result = np.asarray(result)
        node = None if backward is None else Node(name, result, edges, backward)
        if type(result) is list:
            output: Any = [kind.wrap(y, None if node is None else (node, slot)) for slot, y in enumerate(result)]
        else:
            output = kind.__new__(kind)  # as wrap does: this is called for every op
            output.data, output.edge = result, None if node is None else (node, 0)
        for observer in observers:
            observer.after_op(name, operands, output, apply, options)
        return output

    apply.__signature__ = arguments.signature  # type: ignore[attr-defined]
    return apply


def backward(root: Edge, dy: Array, retain_graph: bool = False) -> None:
    """Send `dy` from `root` to every leaf that it depends on, adding to the leaf's `grad`.

    Nodes are visited once each, the latest first, and freed as they are visited unless `retain_graph`. Raises
    RuntimeError where a graph was freed by an earlier backward, or a saved array was overwritten.
    """
    pending, observers = Accumulator(), mode.observers
    pending.add(root, dy, [dy])
    for observer in observers:
        observer.added(None, root)
    while pending.heap:
        node, dys = pending.pop()
        for observer in observers:
            observer.arrived(node, dys)
        if node.backward is None:
            freed = "backward a second time through a graph that was freed; pass retain_graph=True to the first"
            raise RuntimeError(f"{node.name}: {freed}")
        if node.sequence < inplace.last_write:
            refuse_overwritten(node, node.sequence)
        for edge, gradient in node.pull(dys, retain_graph):
            if edge is None:
                continue
            if gradient is None:
                raise RuntimeError(f"{node.name}: the gradient of an operand that requires one is None")
            for observer in observers:
                observer.sent(node, edge, gradient, dys)
            pending.add(edge, gradient, dys)
            for observer in observers:
                observer.added(node, edge)
        gradient = None  # nothing of this node outlives its turn
    for observer in observers:
        observer.finished()
