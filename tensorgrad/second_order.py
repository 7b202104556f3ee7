"""Gradients of gradients: a backward that is recorded, so that it has a backward itself.

Inside `higher_order`, the node of every op keeps its operands. To record its backward, the op runs again on traced
arrays (`tracing.py`): what its backward function then computes is an ordinary graph. A fused op runs again as its plain
composition. This is activation checkpointing of one op, and works to any order; other training does not pay for it.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from tensorgrad import autograd, ops
from tensorgrad.autograd import Context, Edge, Leaf, Node, Observer
from tensorgrad.backend import Array, Backend, backend_of, register
from tensorgrad.random import default_generator
from tensorgrad.tensor import Tensor, initial_gradient
from tensorgrad.tracing import TracedArray, Tracing


class higher_order(Observer):
    """A context in which gradients are recorded: those that `gradients` returns have gradients themselves.

    It takes more memory, since every op keeps its operands. `grad`, `vjp`, `jvp` and `hvp` enter it by themselves.
    """

    def before_op(self, name: str, k: Backend, arrays: list[Any]) -> tuple[Backend, list[Any]]:
        """Remember the state of the generator: a second run of the op draws the same numbers."""
        self._state = default_generator.state_dict()
        return k, arrays

    def after_op(self, name: str, operands: tuple[Any, ...], output: Any, op: Any, options: dict[str, Any]) -> None:
        """Keep what is needed to run the op again."""
        outputs = output if isinstance(output, list) else [output]
        if outputs and outputs[0].edge is not None:
            node = RepeatableNode(outputs[0].node, op, operands, options, self._state)
            for slot, tensor in enumerate(outputs):
                tensor.edge = (node, slot)


class RepeatableNode(Node):
    """A node that can run its op again, on tensors: op(*operands, **options) from that state of the generator."""

    __slots__ = ("op", "operands", "options", "state")

    def __init__(self, node: Node, op: Any, operands: tuple[Any, ...], options: dict[str, Any], state: Any) -> None:
        for name in Node.__slots__:
            setattr(self, name, getattr(node, name))
        # others may write into the tensors: these stand for what they are now
        self.operands = [type(x).wrap(x.data, x.edge) if isinstance(x, Tensor) else x for x in operands]
        self.op, self.options, self.state = op, options, state

    def saved(self) -> Any:
        """What its backward keeps, and the operands."""
        return self.backward, [getattr(x, "data", x) for x in self.operands]

    def pull(self, dys: list[Any], retain_graph: bool) -> Iterable[tuple[Edge | None, Any]]:
        """From traced gradients, return traced gradients of the operands."""
        if not any(isinstance(dy, Tensor) for dy in dys):
            self.operands = self.operands if retain_graph else []
            return super().pull(dys, retain_graph)
        now = default_generator.state_dict()
        default_generator.load_state_dict(self.state)
        try:
            if hasattr(self.op, "composition"):
                options = {name: value for name, value in self.options.items() if name != "ctx"}
                output = self.op.composition(*self.operands, **options)
                outputs = output if isinstance(output, list) else [output]
                return [(y.edge, dy) for y, dy in zip(outputs, dys, strict=True) if dy is not None]
            arrays = [TracedArray.of(x) for x in self.operands]
            k = Tracing(backend_of(self.name, [getattr(x, "data", x) for x in arrays]))
            options = dict(self.options)
            if "ctx" in options:
                options["ctx"] = Context(arrays, [None] * len(arrays), len(arrays), recording=True)
                options["ctx"].needs_grad = self.options["ctx"].needs_grad
            result, backward = self.op.__wrapped__(k, *arrays, **options)
        finally:
            default_generator.load_state_dict(now)
        return Node(self.name, result, self.parents, backward).pull(dys, retain_graph=False)


class _Collector(Observer):
    """Collects the gradients that arrive at some edges, and leaves `.grad` of every leaf as it was."""

    def __init__(self, edges: list[Edge | None], create_graph: bool) -> None:
        self.create_graph = create_graph
        self.found: dict[Edge, Any] = dict.fromkeys(edge for edge in edges if edge is not None)
        self.before: dict[Leaf, Array | None] = {}  # the gradients of leaves

    def arrived(self, node: Node, dys: list[Any]) -> None:
        """Keep what has arrived at an edge. Raises RuntimeError for a node that cannot be recorded."""
        if self.create_graph and type(node) is Node:
            rule = "compute the output inside of `with tg.higher_order():`"
            raise RuntimeError(f"gradients: the gradient of {node.name} cannot be recorded: {rule}")
        self.found |= {(node, slot): dy for slot, dy in enumerate(dys) if (node, slot) in self.found}

    def sent(self, node: Node, edge: Edge, gradient: Any, dys: list[Any]) -> None:
        """Set the gradient of a leaf aside before it is added to."""
        self.set_aside(edge[0])

    def set_aside(self, leaf: Any) -> None:
        """Begin with no gradient at a leaf."""
        if isinstance(leaf, Leaf) and leaf not in self.before:
            self.before[leaf], leaf.grad = leaf.grad, None

    def restore(self) -> None:
        """Take the gradients of the leaves, and give back those of before."""
        for leaf, grad in self.before.items():
            if (leaf, 0) in self.found:
                self.found[leaf, 0] = leaf.grad
            leaf.grad = grad


def gradients(
    output: Tensor, inputs: Tensor | Sequence[Tensor], gradient: Any = None, *, create_graph: bool = False,
    retain_graph: bool | None = None,
) -> Any:  # fmt: skip
    """Return the gradient of `output` with respect to each input: a tensor for one, a tuple for a sequence of them.

    gradient: dloss/doutput, of its shape; 1 by default for a single element. create_graph: record the gradients, so
    that they can be differentiated; `output` has to be computed inside `with tg.higher_order():`. retain_graph: keep
    the graph of `output`, as create_graph does. `.grad` of leaves is not changed.
    Raises RuntimeError for an input that `output` does not depend on, and for a graph that cannot be recorded.
    """
    several: Sequence[Tensor] = [inputs] if isinstance(inputs, Tensor) else inputs
    found = _gradients(output, several, gradient, create_graph, create_graph if retain_graph is None else retain_graph)
    for i, dx in enumerate(found):
        if dx is None:
            raise RuntimeError(f"gradients: the output was not computed from input {i}, or that requires no gradient")
    return found[0] if isinstance(inputs, Tensor) else tuple(found)


def _gradients(
    output: Tensor, inputs: Sequence[Tensor], gradient: Any, create_graph: bool, retain_graph: bool
) -> list[Tensor | None]:
    if output.edge is None:
        raise RuntimeError("gradients: the output was computed from no tensor that requires a gradient")
    array = initial_gradient("gradients", output, gradient)
    edge = gradient.edge if isinstance(gradient, Tensor) else None
    dy = TracedArray.wrap(array, edge) if create_graph else array
    edges = [x.edge for x in inputs]
    with higher_order() if create_graph else autograd.no_grad(), _Collector(edges, create_graph) as collector:
        try:
            collector.set_aside(output.edge[0])
            autograd.backward(output.edge, dy, retain_graph)
        finally:
            collector.restore()
    found = [None if edge is None else collector.found[edge] for edge in edges]
    traced = [(dx.data, dx.edge) if isinstance(dx, Tensor) else (dx, None) for dx in found]
    return [None if array is None else Tensor.wrap(array, edge) for array, edge in traced]


def _inputs(xs: Sequence[Any]) -> list[Tensor]:
    """New tensors with the elements of xs, whose gradients are those of a function alone."""
    return [
        ops.astype(x, dtype=x.dtype) if isinstance(x, Tensor) and x.edge is not None else Tensor(x, requires_grad=True)
        for x in xs
    ]


def vjp(fn: Callable[..., Tensor], *xs: Any) -> tuple[Tensor, Callable[..., tuple[Tensor, ...]]]:
    """Return fn(*xs), and a function from dloss/dy to the gradient of every x: the vector-Jacobian product.

    xs: floating tensors or arrays. fn returns a tensor. A gradient on which fn does not depend is zero.
    """
    with higher_order():
        inputs = _inputs(xs)
        y = fn(*inputs)

    def pull(dy: Any = None) -> tuple[Tensor, ...]:
        if not isinstance(y, Tensor) or y.edge is None:
            return tuple(Tensor(np.zeros(x.shape, x.dtype)) for x in inputs)
        found = _gradients(y, inputs, dy, create_graph=True, retain_graph=True)
        return tuple(x * 0 if dx is None else dx for x, dx in zip(inputs, found, strict=True))

    return y, pull


def grad(fn: Callable[..., Tensor], argnums: int | Sequence[int] = 0) -> Callable[..., Any]:
    """Return the function that computes the gradient of fn with respect to its argument number `argnums`.

    fn returns a tensor of one element. Several argnums give a tuple. `grad(grad(fn))` is the second derivative.
    """
    several = tuple(argnums) if isinstance(argnums, Sequence) else (argnums,)

    def gradient(*xs: Any) -> Any:
        def of_chosen(*chosen: Any) -> Any:
            given = dict(zip(several, chosen, strict=True))
            return fn(*(given.get(i, x) for i, x in enumerate(xs)))

        found = vjp(of_chosen, *(xs[i] for i in several))[1]()
        return found if isinstance(argnums, Sequence) else found[0]

    return gradient


def jvp(fn: Callable[..., Tensor], xs: Sequence[Any], vs: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """Return fn(*xs), and its derivative along vs, one vector of the shape of each x: the Jacobian-vector product.

    The gradient of x is linear in dy, so that the derivative of <gradient, v> with respect to dy is J v.
    """
    y, pull = vjp(fn, *xs)
    with higher_order():
        dy = Tensor(np.zeros(y.shape, y.dtype), requires_grad=True)
        (tangent,) = _gradients(_dot(pull(dy), vs), [dy], None, create_graph=True, retain_graph=True)
    return y, y * 0 if tangent is None else tangent


def hvp(fn: Callable[..., Tensor], xs: Sequence[Any], vs: Sequence[Any]) -> tuple[Tensor, ...]:
    """Return the Hessian of fn at xs times vs, for every x: the gradient of <gradient of fn, v>.

    fn returns a tensor of one element (Pearlmutter 1994, "Fast exact multiplication by the Hessian").
    """
    return vjp(lambda *inputs: _dot(vjp(fn, *inputs)[1](), vs), *xs)[1]()


def _dot(xs: Sequence[Tensor], vs: Sequence[Any]) -> Any:
    return sum(ops.sum(x * v) for x, v in zip(xs, vs, strict=True))


register(Tracing(backend_of("tracing", [np.zeros(())])))
