"""Count the FLOPs, bytes and calls of every op, forward and backward.

While counting, ops run the plain mathematics of `backend/math.py` on arrays that count their own arithmetic, whether it
is written with operators, NumPy functions or kernels. So no op needs a formula for its cost.
"""

import math
import threading
from collections import defaultdict
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Self

import numpy as np

from tensorgrad.autograd import Edge, Leaf, Node, Observer, saved_arrays
from tensorgrad.backend import Array, Backend, register
from tensorgrad.backend.arrays import is_floating
from tensorgrad.backend.quantization import QuantizedMath

LOOKUPS = ("embedding", "getitem", "take", "take_along_axis")  # ops that read only what they return


@dataclass
class Cost:
    """The cost of the calls of an op.

    flops: operations with a floating-point result: 2 for each product in a sum of products, 1 for a function such as
    exp. matmul_flops: those in matrix products. bytes: the sizes of the arrays that were read and written, with those
    that were saved for backward, each counted once; of a table the rows that were looked up; 0 for an op that returns
    a view.
    """

    calls: int = 0
    flops: int = 0
    matmul_flops: int = 0
    bytes: int = 0


class Traffic(Observer):
    """Counts calls and bytes of every op in a `with`, from the arrays that it gets, returns and saves.

    forward and backward map the key of an op to its Cost; "accumulate" in backward is the addition of gradients of one
    tensor, of which the first moves nothing, and "accumulate rows" that of rows to the gradient of a table.
    """

    def __init__(self) -> None:
        self.forward: dict[Any, Cost] = defaultdict(Cost)
        self.backward: dict[Any, Cost] = defaultdict(Cost)
        self._operands: list[list[Any]] = []  # of the ops that are running, the innermost last
        self._key_of: dict[int, Any] = {}  # sequence number of a node -> the key of its op
        self._known: list[Array] = []  # what the backward that is running reads, and the gradients that it has sent
        self._unread = 0  # the bytes of what it has not read yet
        self._had: set[tuple[int, int]] = set()  # edges that have a gradient, by sequence number and slot

    def key(self, name: str, operands: list[Any]) -> Any:
        """What the cost of a call is added up under: the op's name. A subclass may tell more apart."""
        return name

    def before_op(self, name: str, k: Backend, arrays: list[Any]) -> tuple[Backend, list[Any]]:
        """Remember the operands."""
        self._operands.append(arrays)
        return k, arrays

    def after_op(self, name: str, operands: tuple[Any, ...], output: Any, *call: Any) -> None:
        """Count the call and its bytes."""
        arrays = self._operands.pop()
        key = self.key(name, arrays)
        outputs = output if isinstance(output, list) else [output]
        read = [getattr(x, "blocks", x) for x in arrays]  # the bytes of quantised weights
        read = [x for x in read if hasattr(x, "strides")]
        written = [out.data for out in outputs]
        cost = self.forward[key]
        cost.calls += 1
        if not _is_view(read, written):
            saved = [] if outputs[0].edge is None else saved_arrays(outputs[0].edge[0].saved())
            written += [x for x in saved if not _is_view([*read, *written], [x])]
            cost.bytes += _sizes(read[1:]) + _size(outputs[0].data) if name in LOOKUPS else _sizes(read)
            cost.bytes += _sizes(written)
        for out in outputs:
            if out.edge is not None:
                self._key_of[out.edge[0].sequence] = key

    def arrived(self, node: Node, dys: list[Array | None]) -> None:
        """Count the call."""
        self._backward_of(node).calls += 1
        self._known = [*(dy for dy in dys if dy is not None), *saved_arrays(node.saved())]
        self._unread = _sizes(self._known)

    def sent(self, node: Node, edge: Edge, gradient: Any, dys: list[Array | None]) -> None:
        """Count the bytes of a gradient, and once those of all that the backward reads; then those of its addition."""
        array = getattr(gradient, "dy", gradient)
        if not _is_view(self._known, [array]):
            self._backward_of(node).bytes += self._unread + _size(array)
            self._known.append(array)
            self._unread = 0
        place = (edge[0].sequence, edge[1])
        had_gradient = place in self._had or getattr(edge[0], "grad", None) is not None
        self._had.add(place)
        cost = self._sum_of(gradient)
        cost.calls += 1
        if array is not gradient:  # rows of the table, which is set to 0 where it has no gradient yet
            cost.bytes += 3 * _size(array) + (0 if had_gradient else array.itemsize * math.prod(edge[0].shape))
        elif had_gradient:
            cost.bytes += 3 * _size(array)

    def finished(self) -> None:
        """Forget what only this backward needed."""
        self._known.clear()
        self._had.clear()

    def _backward_of(self, node: Node) -> Cost:
        return self.backward[self._key_of.get(node.sequence, node.name)]

    def _sum_of(self, gradient: Any) -> Cost:
        return self.backward[self.key(*addition_of(gradient))]


class count(Traffic):
    """A context that counts the cost of every op.

        with tg.count() as c:
            model.loss(x, y).backward()
        print(c)

    c.forward and c.backward map the name of an op to its Cost; "accumulate" in c.backward is the addition of gradients
    of one tensor, "accumulate rows" that of rows to the gradient of a table. c.total is the sum of all. Results are
    computed by the plain mathematics on the CPU: slower than by the kernels of a backend, and rounded differently.
    """

    def __init__(self) -> None:
        super().__init__()
        self._running: list[Cost] = []  # of the ops that are running, the innermost last: a checkpoint runs some
        self._k: Backend | None = None  # of the caller's arrays; None inside of another count
        self._leaves: dict[int, Leaf] = {}  # that have a gradient

    @property
    def total(self) -> Cost:
        """The sum over all ops, forward and backward."""
        costs = [*self.forward.values(), *self.backward.values()]
        return Cost(*(sum(getattr(cost, name) for cost in costs) for name in Cost.__dataclass_fields__))

    def __enter__(self) -> Self:
        register(_BACKEND)
        _counting.observers = (*_counting.observers, self)
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        _counting.observers = tuple(c for c in _counting.observers if c is not self)

    def add(self, flops: int, is_matmul: bool) -> None:
        """Add operations to the cost of the op that is running."""
        if self._running:
            self._running[-1].flops += flops
            self._running[-1].matmul_flops += flops if is_matmul else 0

    def before_op(self, name: str, k: Backend, arrays: list[Any]) -> tuple[Backend, list[Any]]:
        """Let the op run on counted arrays."""
        self._k = self._k if k is _BACKEND else k
        copies = {id(x): self._on_host(x) for x in arrays}  # one for an operand that is given twice
        arrays = [copies[id(x)] for x in arrays]
        super().before_op(name, k, arrays)
        self._running.append(self.forward[self.key(name, arrays)])
        return _BACKEND, [_counted(x) for x in arrays]

    def after_op(self, name: str, operands: tuple[Any, ...], output: Any, *call: Any) -> None:
        """Return ordinary arrays to the caller."""
        self._running.pop()
        outputs = output if isinstance(output, list) else [output]
        for out in outputs:
            out.data = _plain(out.data)
        super().after_op(name, operands, output, *call)
        for out in outputs:
            out.data = self._on_device(out.data)

    def arrived(self, node: Node, dys: list[Array | None]) -> None:
        """Let the backward run on counted arrays."""
        dys[:] = [None if dy is None else _counted(self._on_host(dy)) for dy in dys]
        super().arrived(node, dys)
        self._running[:] = [self._backward_of(node)]

    def sent(self, node: Node, edge: Edge, gradient: Any, dys: list[Array | None]) -> None:
        """The addition that follows is "accumulate"."""
        super().sent(node, edge, gradient, dys)
        leaf = edge[0]
        if isinstance(leaf, Leaf):
            leaf.grad = None if leaf.grad is None else self._on_host(leaf.grad)
            self._leaves[leaf.sequence] = leaf
        self._running[:] = [self._sum_of(gradient)]

    def added(self, node: Node | None, edge: Edge) -> None:
        """Go back to counting for the op."""
        self._running[:] = [] if node is None else [self._backward_of(node)]

    def finished(self) -> None:
        """Return ordinary arrays to the caller."""
        super().finished()
        self._running.clear()
        for leaf in self._leaves.values():
            leaf.grad = self._on_device(_plain(leaf.grad))
        self._leaves.clear()

    def _on_host(self, x: Any) -> Any:
        return x if self._k is None or not isinstance(x, self._k.array_type) else self._k.to_numpy(x)

    def _on_device(self, x: Array) -> Array:
        return x if self._k is None else self._k.asarray(x)

    def __str__(self) -> str:
        lines = [f"{'op':<26}{'calls':>7}{'MFLOP':>12}{'of products':>13}{'MB':>10}"]
        for phase, costs in (("", self.forward), (" backward", self.backward), ("total", {"": self.total})):
            for name, c in sorted(costs.items(), key=lambda item: -item[1].flops):
                figures = f"{c.flops / 1e6:>12,.3f}{c.matmul_flops / 1e6:>13,.3f}{c.bytes / 1e6:>10,.3f}"
                lines.append(f"{name + phase:<26}{c.calls:>7,}{figures}")
        return "\n".join(lines)


def addition_of(gradient: Any) -> tuple[str, list[Array]]:
    """What the addition of a gradient is called, and its array."""
    return ("accumulate rows", [gradient.dy]) if hasattr(gradient, "dy") else ("accumulate", [gradient])


def _is_view(read: list[Array], written: list[Array]) -> bool:
    """Whether an array shares memory with one of the first."""
    owners = {id(_owner(x)) for x in read}
    return any(id(_owner(y)) in owners for y in written)


def _owner(x: Any) -> Any:
    """The array that owns the memory, below the views that count."""
    while isinstance(getattr(x, "base", None), np.ndarray if isinstance(x, CountedArray) else type(x)):
        x = x.base
    return x


def _size(x: Array) -> int:
    """The bytes of the elements, those that broadcasting repeats counted once."""
    return int(x.itemsize * math.prod(n for n, stride in zip(x.shape, x.strides, strict=True) if stride))


def _sizes(arrays: list[Array]) -> int:
    """The bytes of all of them, each counted once."""
    return sum({id(x): _size(x) for x in arrays}.values())


class _Counting(threading.local):
    observers: tuple[count, ...] = ()


_counting = _Counting()


class CountedArray(np.ndarray):
    """An array that reports every floating-point operation on it."""

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = None, **options: Any) -> Any:
        """NumPy calls this for operators, elementwise functions and matmul."""
        if out is not None:
            options["out"] = tuple(_plain(x) for x in out)
        plain = [_plain(x) for x in inputs]
        result = getattr(ufunc, method)(*plain, **options)
        if method == "at":  # in place: x[indices] += values
            _report(np.broadcast(plain[0][plain[1]], *plain[2:]).size, plain[0], is_matmul=False)
            return None
        first = result[0] if isinstance(result, tuple) else result
        if ufunc is np.matmul:
            _report(2 * np.size(first) * np.shape(plain[0])[-1], first, is_matmul=True)
        elif method == "reduce":
            _report(np.size(plain[0]) - np.size(first), first, is_matmul=False)
        else:
            _report(np.size(first), first, is_matmul=False)
        return out[0] if out is not None and len(out) == 1 else _counted(result)

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        """NumPy calls this for its other functions. Those written in Python call `__array_ufunc__` in turn."""
        result = super().__array_function__(func, types, args, kwargs)
        if func in (np.dot, np.inner):
            _report(2 * np.size(result) * np.shape(args[0])[-1], result, is_matmul=True)
        elif func is np.vdot:
            _report(2 * np.size(args[0]), result, is_matmul=True)
        elif func is np.einsum:
            _report(_einsum_flops(*args), result, is_matmul=True)
        return _counted(result)


def _einsum_flops(subscripts: str, *operands: Array) -> int:
    """By the definition of einsum: for every combination of indices, a product of all operands and an addition."""
    terms = subscripts.replace(" ", "").split("->")[0].split(",")
    sizes: dict[str, int] = {}
    for term, x in zip(terms, operands, strict=True):
        before, dots, after = term.partition("...")
        names = [*before, *(f".{i}" for i in range(x.ndim - len(before + after), 0, -1) if dots), *after]
        for name, n in zip(names, x.shape, strict=True):
            sizes[name] = max(n, sizes.get(name, 1))
    return len(operands) * int(np.prod(list(sizes.values()), dtype=object))


def _report(flops: int, result: Any, is_matmul: bool) -> None:
    if is_floating(np.asarray(result).dtype):
        for observer in _counting.observers:
            observer.add(int(flops), is_matmul)


def _counted(x: Any) -> Any:
    """Convert arrays, also in tuples and lists, to counted ones; return anything else unchanged."""
    if isinstance(x, np.generic):
        x = np.asarray(x)
    if isinstance(x, tuple | list):
        return type(x)(map(_counted, x))
    return x.view(CountedArray) if type(x) is np.ndarray else x


def _plain(x: Any) -> Any:
    return x.view(np.ndarray) if isinstance(x, CountedArray) else x


class _CountedNumPy:
    """NumPy, whose functions return counted arrays."""

    def __getattr__(self, name: str) -> Any:
        value = getattr(np, name)
        if not callable(value) or isinstance(value, type | np.ufunc | ModuleType):
            return value
        return lambda *args, **options: _counted(value(*args, **options))


class _CountingBackend(QuantizedMath, Backend):
    """The plain mathematics on counted arrays."""

    name = "count"
    xp: Any = _CountedNumPy()
    array_type = CountedArray

    def asarray(self, x: Any, dtype: Any = None) -> Array:
        return _counted(np.asanyarray(x, dtype=dtype))

    def to_numpy(self, x: Array) -> Any:
        return _plain(x)


_BACKEND = _CountingBackend()
