"""Count the FLOPs, bytes and calls of every op, forward and backward.

While counting, ops run the plain mathematics of `backend/math.py` on arrays that count their own arithmetic, whether it
is written with operators, NumPy functions or kernels. So no op needs a formula for its cost.
"""

import threading
from collections import defaultdict
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from tensorgrad.autograd import Edge, Leaf, Node, Observer, saved_arrays
from tensorgrad.backend import Array, Backend, register
from tensorgrad.backend.arrays import Quantized, is_floating
from tensorgrad.backend.quantization import QuantizedMath


@dataclass
class Cost:
    """The cost of the calls of an op.

    flops: operations with a floating-point result: 2 for each product in a sum of products, 1 for a function such as
    exp. matmul_flops: those in matrix products. bytes: the sizes of the arrays that were read and written, each counted
    once; 0 for an op that returns a view.
    """

    calls: int = 0
    flops: int = 0
    matmul_flops: int = 0
    bytes: int = 0


class count(Observer):
    """A context that counts the cost of every op.

        with tg.count() as c:
            model.loss(x, y).backward()
        print(c)

    c.forward and c.backward map the name of an op to its Cost; "accumulate" in c.backward is the addition of gradients
    of one tensor. c.total is the sum of all. Results are computed by the plain mathematics: slower than by the kernels
    of a backend, and rounded differently. Raises TypeError for arrays that are not on the CPU.
    """

    def __init__(self) -> None:
        self.forward: dict[str, Cost] = defaultdict(Cost)
        self.backward: dict[str, Cost] = defaultdict(Cost)
        self._running: list[Cost] = []  # of the ops that are running, the innermost last: a checkpoint runs some

    @property
    def total(self) -> Cost:
        """The sum over all ops, forward and backward."""
        costs = [*self.forward.values(), *self.backward.values()]
        return Cost(*(sum(getattr(cost, name) for cost in costs) for name in Cost.__dataclass_fields__))

    def __enter__(self) -> "count":
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
        if any(not isinstance(x, np.ndarray | np.generic | Quantized) and hasattr(x, "dtype") for x in arrays):
            raise TypeError(f"count: {name} runs on {k.name}; only arrays on the CPU are counted: use .to('numpy')")
        self._running.append(self.forward[name])
        return _BACKEND, [_counted(x) for x in arrays]

    def after_op(self, name: str, operands: tuple[Any, ...], output: Any, *call: Any) -> None:
        """Count the bytes, and return ordinary arrays to the caller."""
        cost = self._running.pop()
        cost.calls += 1
        outputs = output if isinstance(output, list) else [output]
        for out in outputs:
            out.data = _plain(out.data)
        read = [getattr(x, "data", x) if hasattr(x, "edge") else x for x in operands]
        read = [getattr(x, "blocks", x) for x in read]  # the bytes of quantised weights
        cost.bytes += _moved([x for x in read if isinstance(x, np.ndarray)], [out.data for out in outputs])

    def arrived(self, node: Node, dys: list[Array | None]) -> None:
        """Let the backward run on counted arrays."""
        dys[:] = [None if dy is None else _counted(dy) for dy in dys]
        self._running[:] = [self.backward[node.name]]
        self._running[0].calls += 1
        self._running[0].bytes += sum(x.nbytes for x in saved_arrays(node.saved()))

    def sent(self, node: Node, edge: Edge, gradient: Any, dys: list[Array | None]) -> None:
        """Count the bytes of a gradient. The addition that follows is "accumulate"."""
        array = getattr(gradient, "dy", gradient)
        self._running[0].bytes += _moved([dy for dy in dys if dy is not None], [array])
        self._running[:] = [self.backward["accumulate"]]

    def added(self, node: Node | None, edge: Edge) -> None:
        """Turn the gradient of a leaf into an ordinary array, and go back to counting for the op."""
        leaf = edge[0]
        if isinstance(leaf, Leaf) and leaf.grad is not None:
            leaf.grad = _plain(leaf.grad)
        self._running[:] = [] if node is None else [self.backward[node.name]]

    def finished(self) -> None:
        self._running.clear()

    def __str__(self) -> str:
        lines = [f"{'op':<26}{'calls':>7}{'MFLOP':>12}{'of products':>13}{'MB':>10}"]
        for phase, costs in (("", self.forward), (" backward", self.backward), ("total", {"": self.total})):
            for name, c in sorted(costs.items(), key=lambda item: -item[1].flops):
                figures = f"{c.flops / 1e6:>12,.3f}{c.matmul_flops / 1e6:>13,.3f}{c.bytes / 1e6:>10,.3f}"
                lines.append(f"{name + phase:<26}{c.calls:>7,}{figures}")
        return "\n".join(lines)


def _moved(read: list[Array], written: list[Array]) -> int:
    """The bytes of all arrays, or 0 if an output shares memory with an input."""
    if any(np.may_share_memory(x, y) for x in read for y in written):
        return 0
    return sum({id(x): x.nbytes for x in (*read, *written)}.values())


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
