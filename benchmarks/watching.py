"""Where the time of a training step goes, seen from outside: the engine knows nothing of being watched.

`Watch` puts a clock around every op of tensorgrad (wherever a module holds it), every kernel of the backend, and, once
the graph is there, every backward function in it, and takes them away again.
"""

import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

# Operations an element, forward and backward, as the formulas in backend/math.py count them; exp and tanh as one.
PER_ELEMENT = {
    "add": (1, 0), "multiply": (1, 2), "gelu": (9, 17), "silu": (4, 7), "relu": (1, 1), "dropout": (2, 2),
    "layer_norm": (8, 12), "rms_norm": (5, 9), "softmax": (4, 4), "log_softmax": (4, 3), "cross_entropy": (4, 3),
}  # fmt: skip
# Of the optimiser's kernels, by a part of the name: operations and bytes moved for every parameter.
PER_PARAMETER = {"adamw": (14, 28), "norm": (2, 4)}
# These give their operand's own memory where they can.
VIEWS = {
    "broadcast_to", "dropout", "expand_dims", "getitem", "matrix_transpose", "permute_dims", "reshape", "split",
    "squeeze",
}  # fmt: skip


@dataclass
class Row:
    """What an op (or a kernel outside of ops) took in one phase."""

    calls: int = 0
    seconds: float = 0.0
    kernel_seconds: float = 0.0  # of them, inside the backend's methods
    flop: float = 0.0
    bytes: float = 0.0


class Watch:
    """In a `with`: everything that a step does is counted in `rows`, {(phase, op): Row}."""

    def __init__(self, backend: Any, n_params: int) -> None:
        self.backend, self.n_params = backend, n_params
        self.rows: dict[tuple[str, str], Row] = defaultdict(Row)
        self.phase = ""
        self.in_op: Row | None = None
        self.in_kernel = False
        self.n_ops = self.n_clocks = 0
        self.flop_of: dict[int, float] = {}  # id of a node -> operations of its forward
        self.undo: list[Callable[[], None]] = []

    def __enter__(self) -> "Watch":
        kernels = (name for name in dir(type(self.backend)) if not name.startswith("_"))
        for name in kernels:
            if callable(kernel := getattr(self.backend, name)) and not isinstance(kernel, type):
                setattr(self.backend, name, self._timed_kernel(name, kernel))
                self.undo.append(lambda name=name: delattr(self.backend, name))
        for holder, name, op in find_ops():
            setattr(holder, name, self._timed_op(op))
            self.undo.append(lambda holder=holder, name=name, op=op: setattr(holder, name, op))
        return self

    def __exit__(self, *error: object) -> None:
        while self.undo:
            self.undo.pop()()

    def _timed_kernel(self, name: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            if self.in_kernel:  # a kernel made of kernels counts once
                return kernel(*arguments, **options)
            self.in_kernel = True
            self.n_clocks += 1
            started = time.perf_counter()
            try:
                return kernel(*arguments, **options)
            finally:
                seconds = time.perf_counter() - started
                self.in_kernel = False
                self._count_kernel(name, seconds)

        return timed

    def _count_kernel(self, name: str, seconds: float) -> None:
        if self.in_op is not None:
            self.in_op.kernel_seconds += seconds
            return
        row = self.rows[self.phase, name]
        row.calls += 1
        row.seconds += seconds
        row.kernel_seconds += seconds

    def _timed_op(self, op: Callable[..., Any]) -> Callable[..., Any]:
        name = op.__name__.lstrip("_")

        def timed(*operands: Any, **options: Any) -> Any:
            if self.in_op is not None:  # an op made of ops counts once
                return op(*operands, **options)
            self.in_op = row = self.rows[self.phase, name]
            self.n_clocks += 1
            started = time.perf_counter()
            try:
                result = op(*operands, **options)
            finally:
                row.seconds += time.perf_counter() - started
                self.in_op = None
            row.calls += 1
            self._count_forward(row, name, operands, result, options)
            return result

        return timed

    def _count_forward(self, row: Row, name: str, operands: Any, result: Any, options: dict[str, Any]) -> None:
        results = result if isinstance(result, list) else [result]
        arrays = [x for x in map(array_of, operands) if x is not None]
        if is_view(name, results[0].data, arrays):
            return
        flop, node = forward_flop(name, arrays, results[0].data, options), results[0].node
        row.bytes += nbytes([*arrays, *(x.data for x in results)])
        if name == "linear_cross_entropy" and node is not None:  # makes its gradients in forward: two more products
            row.flop += 3 * flop
            return
        row.flop += flop
        if node is not None:
            self.flop_of[id(node)] = flop

    def watch_graph(self, root: Any) -> None:
        """Put a clock around every backward function that leads to the node `root`."""
        waiting, seen = [root], {id(root)}
        while waiting:
            node = waiting.pop()
            for parent, _ in filter(None, node.parents):
                if id(parent) not in seen:
                    seen.add(id(parent))
                    waiting.append(parent)
            if node.backward is None:  # a leaf
                continue
            self.n_ops += 1
            row, several = self.rows[self.phase, node.name], type(node.backward) is tuple
            functions = list(node.backward) if several else [node.backward]
            self._count_backward(row, node, functions)
            timed = [function and self._timed_backward(node.name, function, row) for function in functions]
            node.backward = tuple(timed) if several else timed[0]

    def _count_backward(self, row: Row, node: Any, functions: list[Any]) -> None:
        row.calls += 1
        n_products = sum(function is not None for function in functions[:2]) if len(functions) > 1 else 2
        row.flop += backward_flop(node.name, self.flop_of.get(id(node), 0.0), n_products)

    def _timed_backward(self, name: str, function: Callable[..., Any], row: Row) -> Callable[..., Any]:
        from tensorgrad.autograd import saved_arrays

        def timed(dy: Any) -> Any:
            self.in_op = row
            self.n_clocks += 1
            started = time.perf_counter()
            try:
                result = function(dy)
            finally:
                row.seconds += time.perf_counter() - started
                self.in_op = None
            results = [x for x in (result if isinstance(result, tuple) else [result]) if hasattr(x, "nbytes")]
            arrived = [x for x in (dy if isinstance(dy, list) else [dy]) if x is not None]
            if results and not is_view(name, results[0], arrived):  # none: rows that are added up where they arrive
                row.bytes += nbytes([*arrived, *saved_arrays(function), *results])
            return result

        return timed


def find_ops() -> Iterator[tuple[Any, str, Callable[..., Any]]]:
    """(module, name, op) for every place from which an op is called by name."""
    import tensorgrad.ops

    ops = {id(getattr(tensorgrad.ops, name)) for name in tensorgrad.ops.__all__}
    for module_name, module in list(sys.modules.items()):
        if module_name.split(".")[0] in ("tensorgrad", "gpt"):
            for name, value in list(vars(module).items()):
                if id(value) in ops:
                    yield module, name, value


def array_of(x: Any) -> Any:
    """The array of a Tensor, an array itself, or None."""
    x = getattr(x, "data", None) if hasattr(x, "node") else x
    return x if hasattr(x, "nbytes") else None


def is_view(name: str, result: Any, operands: list[Any]) -> bool:
    """Whether an op only handed on its operand's memory: then nothing was moved or computed."""
    import numpy as np

    if any(result is x for x in operands):
        return True
    return name in VIEWS and any(np.may_share_memory(result, x) for x in operands)


def nbytes(arrays: list[Any]) -> int:
    """The bytes of different arrays together."""
    return sum({id(x): x.nbytes for x in arrays}.values())


def forward_flop(name: str, operands: list[Any], result: Any, options: dict[str, Any]) -> float:
    """Operations of an op: exact for products, by the formulas for what is counted by element, else 0."""
    if name.startswith("linear"):
        return 2.0 * operands[0].size * operands[1].shape[0]
    if name == "mlp":  # its products: GELU is next to nothing beside them
        return 2.0 * operands[1].shape[0] * (operands[0].size + result.size)
    if name == "matmul":
        return 2.0 * result.size * operands[0].shape[-1]
    if name == "attention":
        (B, H, T, D), S = operands[0].shape, operands[1].shape[2]
        pairs = T * S - T * (T - 1) / 2 if options.get("causal") else T * S
        return 4.0 * B * H * D * pairs
    per_element = PER_ELEMENT.get(name, (0, 0))[0]
    return float(per_element * operands[0].size) if operands else 0.0


def backward_flop(name: str, forward: float, n_products: int) -> float:
    """Operations of an op's backward: a product has one for each of its operands, attention two for each of its two."""
    if name.startswith(("linear", "matmul", "mlp", "attention")):
        return forward * n_products
    there, back = PER_ELEMENT.get(name, (1, 0))
    return forward / there * back
