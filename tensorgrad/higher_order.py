"""Gradients of gradients: a backward that is recorded, so that it has a backward itself.

Inside `higher_order`, the node of every op keeps its operands. To record its backward, the op is run again on traced
arrays: tensors with the interface of NumPy's arrays, on a backend whose `xp` calls the ops of this library. What its
backward function then computes is an ordinary graph. A fused op is run again as its plain composition.

This is activation checkpointing of one op (see `autograd/recompute.py`), and works to any order. Other training does
not pay for it.
"""

import heapq
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from tensorgrad import ops
from tensorgrad.autograd import Context, Edge, Node, Observer, SparseGradient, enable_grad, no_grad, op
from tensorgrad.autograd import inplace
from tensorgrad.autograd.recompute import CheckpointNode
from tensorgrad.backend import Array, Backend, backend_of
from tensorgrad.backend.arrays import is_floating
from tensorgrad.ops.broadcasting import shape_of, unbroadcast
from tensorgrad.random import default_generator
from tensorgrad.tensor import Tensor, kernels_of


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
        self.op, self.operands, self.options, self.state = op, operands, options, state

    def saved(self) -> Any:
        """What its backward keeps, and the operands."""
        return self.backward, [getattr(x, "data", x) for x in self.operands]

    def pull(self, dys: list[Array | None], retain_graph: bool) -> Iterable[tuple[Edge | None, Any]]:
        """Free the operands, too, unless the graph is retained."""
        if not retain_graph:
            self.operands = ()
        return super().pull(dys, retain_graph)

    def pull_recorded(self, dys: list[Any]) -> Iterable[tuple[Edge | None, Any]]:
        """As `pull`, from tensors to tensors, recorded."""
        now = default_generator.state_dict()
        default_generator.load_state_dict(self.state)
        try:
            if hasattr(self.op, "composition"):
                options = {name: value for name, value in self.options.items() if name != "ctx"}
                outputs = self.op.composition(*self.operands, **options)
                outputs = outputs if isinstance(outputs, list | tuple) else [outputs]
                return [(y.edge, dy) for y, dy in zip(outputs, dys, strict=True) if dy is not None]
            arrays = [TracedArray.of(x) for x in self.operands]
            k = _tracing(backend_of(self.name, [getattr(x, "data", x) for x in arrays]))
            options = dict(self.options)
            if "ctx" in options:
                options["ctx"] = _Context(arrays, options["ctx"].needs_grad)
            result, backward = self.op.__wrapped__(k, *arrays, **options)
        finally:
            default_generator.load_state_dict(now)
        node = Node(self.name, result, self.parents, backward)
        return node.pull([dy if dy is None else TracedArray.of(dy) for dy in dys], retain_graph=False)


class _Context(Context):
    """The `ctx` of an op that is run again: it saves its operands, which are tensors."""

    def __init__(self, arrays: list[Any], needs_grad: tuple[bool, ...]) -> None:
        super().__init__(arrays, [None] * len(arrays), len(arrays), recording=True)
        self.needs_grad = needs_grad


# --- traced arrays --------------------------------------------------------------------------------


class TracedArray(Tensor):
    """A tensor with the attributes and methods of NumPy's arrays that ops use."""

    __slots__ = ()
    base = None  # no op may write into it

    @classmethod
    def of(cls, x: Any) -> Any:
        """A tensor as a traced array, or its array where that can have no gradient; anything else as it is."""
        if not isinstance(x, Tensor):
            return x
        return cls.wrap(x.data, x.edge) if is_floating(x.dtype) else x.data

    @property
    def nbytes(self) -> int:
        """The bytes of its elements."""
        return self.data.nbytes

    @property
    def T(self) -> Any:
        """The axes reversed."""
        return self.transpose(*reversed(range(self.ndim)))

    def transpose(self, *axes: Any) -> Any:
        """The axes in that order."""
        return ops.permute_dims(self, tuple(axes[0]) if len(axes) == 1 and not isinstance(axes[0], int) else axes)

    def swapaxes(self, a: int, b: int) -> Any:
        """Two axes exchanged."""
        axes = list(range(self.ndim))
        axes[a], axes[b] = axes[b], axes[a]
        return self.transpose(*axes)

    def astype(self, dtype: Any, copy: bool = True) -> Any:
        """In another dtype."""
        return self if self.dtype == np.dtype(dtype) else ops.astype(self, dtype=dtype)

    def copy(self) -> Any:
        """Another traced array of the same elements: `x[key] = y` changes only one of them."""
        return TracedArray.wrap(self.data, self.edge)

    def max(self, axis: Any = None, keepdims: bool = False) -> Any:
        """The maximum, as a constant: kernels subtract it from all elements, which changes no result."""
        return ops.max(self.detach(), axis=axis, keepdims=keepdims)

    def min(self, axis: Any = None, keepdims: bool = False) -> Any:
        """The minimum, as a constant."""
        return ops.min(self.detach(), axis=axis, keepdims=keepdims)

    def detach(self) -> Any:
        """The same array as a constant."""
        return TracedArray.wrap(self.data)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._become(_set_at(self, value, key=key))

    def _become(self, other: Tensor) -> None:
        self.data, self.edge = other.data, other.edge


@op
def _set_at(k: Backend, x: Array, values: Array, *, key: Any) -> tuple[Array, Any]:
    """x with x[key] = values."""
    shape, y = shape_of(values), x.copy()
    y[key] = values

    def dx(dy: Array) -> Array:
        dx = dy.copy()
        dx[key] = 0
        return dx

    return y, (dx, lambda dy: unbroadcast(k, dy[key], shape))


@op
def _add_at(k: Backend, x: Array, values: Array, *, key: Any) -> tuple[Array, Any]:
    """x with the values added at x[key]; those of a repeated index add up."""
    shape, y = shape_of(values), x.copy()
    k.xp.add.at(y, key, values)
    return y, (lambda dy: dy, lambda dy: unbroadcast(k, dy[key], shape))


class _Add:
    """`xp.add`, with its method `at`."""

    def __call__(self, a: Any, b: Any) -> Any:
        return a + b

    def at(self, x: Any, key: Any, values: Any) -> None:
        x._become(_add_at(x, values, key=key))


def _cumprod(x: Tensor, axis: int) -> Any:
    """The product of all elements up to each one, along the last axis."""
    products = [x[..., :1]] if x.shape[axis] else [x]
    for i in range(1, x.shape[axis]):
        products.append(products[-1] * x[..., i : i + 1])
    return ops.concat(products, axis=axis)


# the functions of NumPy that have another name or other arguments here
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "add": _Add(),
    "concatenate": ops.concat,
    "cumprod": _cumprod,
    "einsum": lambda *operands, optimize: ops.einsum(*operands),
    "cumsum": ops.cumulative_sum,
    "logaddexp": lambda a, b: ops.softplus(a - b) + b,
    "pad": lambda x, widths, constant_values: ops.pad(x, pad_width=widths, constant=constant_values),
    "repeat": lambda x, counts, axis=None: ops.repeat(x, repeats=counts, axis=axis),
    "result_type": lambda *arrays: np.result_type(*(getattr(x, "data", x) for x in arrays)),
}
_CREATION = ("empty", "ones", "zeros")


class _Namespace:
    """NumPy or CuPy, whose functions record what they do with traced arrays."""

    def __init__(self, xp: Any) -> None:
        self.xp = xp

    def __getattr__(self, name: str) -> Any:
        plain = getattr(self.xp, name)
        if isinstance(plain, type) or not callable(plain):  # a dtype or a number
            return plain
        if name in _CREATION:
            return lambda *args: TracedArray.wrap(plain(*args))
        if name == "add":
            return _FUNCTIONS[name]

        def function(*args: Any, **options: Any) -> Any:
            flat = [x for arg in args for x in (arg if isinstance(arg, list | tuple) else [arg])]
            if not any(isinstance(x, Tensor) for x in flat):
                return plain(*args, **options)
            if name in ("zeros_like", "ones_like"):
                return TracedArray.wrap(plain(args[0].data))
            result = (_FUNCTIONS.get(name) or getattr(ops, name))(*args, **options)
            return TracedArray.of(result)

        return function


class _Tracing(Backend):
    """The plain mathematics on traced arrays."""

    name = "tracing"
    array_type = TracedArray

    def __init__(self, k: Backend) -> None:
        self.k, self.xp = k, _Namespace(k.xp)

    def asarray(self, x: Any, dtype: Any = None) -> Any:
        """A traced array as it is, constants on the backend of the others."""
        if isinstance(x, Tensor):
            return x if dtype is None else TracedArray.of(x).astype(dtype)
        return self.k.asarray(x, dtype)

    def check_indices(self, name: str, indices: Array, n: int, lowest: int | None = None) -> None:
        """They were checked when the op ran first."""

    def weak_scalars(self, operands: list[Any]) -> list[Any]:
        """Ops convert them."""
        return operands

    def dropout_scale(self, *args: Any) -> Any:
        """A constant."""
        return self.k.dropout_scale(*args)

    def logsumexp(self, x: Any, axis: Any, keepdims: bool) -> Any:
        """By the op."""
        return ops.logsumexp(x, axis=axis, keepdims=keepdims)

    def erf(self, x: Any) -> Any:
        """By the op, whose derivative is a formula."""
        return ops.erf(x)

    def gelu(self, x: Any) -> Any:
        """By the op."""
        return ops.gelu(x)

    def gelu_backward(self, dy: Any, x: Any) -> Any:
        """By erf, as in the plain mathematics."""
        density = ops.exp(-0.5 * x * x) * (1 / np.sqrt(2 * np.pi)).item()
        return dy * (0.5 * (1 + ops.erf(x * 0.5**0.5)) + x * density)


def _tracing(k: Backend) -> _Tracing:
    return _Tracing(k)


# --- gradients as values --------------------------------------------------------------------------


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
    several = inputs if isinstance(inputs, list | tuple) else [inputs]
    found = _gradients(output, several, gradient, create_graph, create_graph if retain_graph is None else retain_graph)
    for i, dx in enumerate(found):
        if dx is None:
            raise RuntimeError(f"gradients: the output was not computed from input {i}, or that requires no gradient")
    return tuple(found) if isinstance(inputs, list | tuple) else found[0]


def _gradients(
    output: Tensor, inputs: Sequence[Tensor], gradient: Any, create_graph: bool, retain_graph: bool
) -> list[Tensor | None]:
    if output.edge is None:
        raise RuntimeError("gradients: the output was computed from no tensor that requires a gradient")
    if gradient is None:
        if output.size != 1:
            raise RuntimeError(f"gradients: shape {output.shape} is not a scalar: pass a gradient of that shape")
        gradient = Tensor.wrap(kernels_of(output).xp.ones(output.shape, output.dtype))
    gradient = gradient if isinstance(gradient, Tensor) else Tensor(gradient)
    if gradient.shape != output.shape:
        raise ValueError(f"gradients: gradient of shape {gradient.shape} for a tensor of shape {output.shape}")
    with higher_order() if create_graph else no_grad():
        return _Pass([x.edge for x in inputs], create_graph, retain_graph).run(output.edge, gradient)


class _Pass:
    """A backward pass over tensors, which collects the gradients at some edges."""

    def __init__(self, edges: list[Edge | None], create_graph: bool, retain_graph: bool) -> None:
        self.edges, self.create_graph, self.retain_graph = edges, create_graph, retain_graph
        self.sums: dict[Edge, Any] = {}
        self.heap: list[tuple[int, Node]] = []  # the latest node first
        self.waiting: set[Node] = set()
        self.earliest = min((edge[0].sequence for edge in edges if edge is not None), default=0)

    def run(self, root: Edge, gradient: Tensor) -> list[Tensor | None]:
        """Return the gradient at every edge, None where none arrives."""
        found: dict[Edge, Any] = {}
        self.add(root, gradient)
        while self.heap:
            node = heapq.heappop(self.heap)[1]
            self.waiting.discard(node)
            n = 1 if node.outputs is None else len(node.outputs)
            dys = [self.sums.pop((node, slot), None) for slot in range(n)]
            found |= {(node, slot): dy for slot, dy in enumerate(dys) if (node, slot) in self.edges}
            if node.is_leaf or node.sequence <= self.earliest:
                continue
            for edge, dx in self.pull(node, dys):
                if edge is not None and dx is not None:
                    self.add(edge, dx)
        results = [None if edge is None else found.get(edge) for edge in self.edges]
        return [dx if dx is None else Tensor.wrap(dx.data, dx.edge) for dx in results]

    def add(self, edge: Edge, dx: Any) -> None:
        """Add a gradient to what has arrived at an edge."""
        node, slot = edge
        dx = dx.dense() if isinstance(dx, SparseGradient) else dx
        dx = dx if isinstance(dx, Tensor) else Tensor.wrap(dx)
        shape, dtype = (node.shape, node.dtype) if node.outputs is None else node.outputs[slot]
        dx = dx if dx.dtype == dtype else ops.astype(dx, dtype=dtype)
        if dx.shape != shape:
            raise RuntimeError(f"{node.name}: gradient of shape {dx.shape} for an output of shape {shape}")
        self.sums[edge] = dx if edge not in self.sums else self.sums[edge] + dx
        if node not in self.waiting:
            self.waiting.add(node)
            heapq.heappush(self.heap, (-node.sequence, node))

    def pull(self, node: Node, dys: list[Any]) -> Iterable[tuple[Edge | None, Any]]:
        """Return the gradients of a node's operands."""
        if node.backward is None:
            raise RuntimeError(f"{node.name}: its graph was freed by an earlier backward; pass retain_graph=True to that")
        if node.sequence < inplace.last_write:
            inplace.refuse_overwritten(node, node.sequence)
        if isinstance(node, CheckpointNode):  # it runs its function again, and passes gradients on to the new graph
            return node.pull(dys, self.retain_graph)
        if not self.create_graph:
            return node.pull([dy if dy is None else dy.data for dy in dys], self.retain_graph)
        if not isinstance(node, RepeatableNode):
            raise RuntimeError(
                f"gradients: {node.name} was recorded outside of `with tg.higher_order():`, so that its gradient has no "
                "gradient; compute the output inside of it"
            )
        return node.pull_recorded(dys)


# --- functions of functions -----------------------------------------------------------------------


def _inputs(xs: Sequence[Any]) -> list[Tensor]:
    """New tensors with the elements of xs, whose gradients are those of a function alone."""
    return [
        ops.astype(x, dtype=x.dtype) if isinstance(x, Tensor) and x.edge is not None else Tensor(x, requires_grad=True)
        for x in xs
    ]


def vjp(fn: Callable[..., Tensor], *xs: Any) -> tuple[Tensor, Callable[[Any], tuple[Tensor, ...]]]:
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
    several = (argnums,) if isinstance(argnums, int) else tuple(argnums)

    def gradient(*xs: Any) -> Any:
        def of_chosen(*chosen: Any) -> Any:
            given = dict(zip(several, chosen, strict=True))
            return fn(*(given.get(i, x) for i, x in enumerate(xs)))

        found = vjp(of_chosen, *(xs[i] for i in several))[1]()
        return found[0] if isinstance(argnums, int) else found

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
