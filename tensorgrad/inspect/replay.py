"""A recorded computation as a program, which runs again in float64: for gradients, and for finite differences.

The ops run on NumPy, with the same random draws; a fused op runs as its composition of plain ops. What was read out of
a tensor while it was recorded, such as an index or a detached array, stays what it was, as it does for backward.
"""

import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from tensorgrad.autograd import Edge, Node, Observer, SparseGradient, enable_grad, no_grad
from tensorgrad.backend import Array, backend_of, use_backend
from tensorgrad.backend.arrays import is_floating
from tensorgrad.backend.quantization import QuantizedArray
from tensorgrad.inspect.formulas import operand_names
from tensorgrad.random import default_generator
from tensorgrad.tensor import Tensor


class Made(NamedTuple):
    """An operand that a call has made. tracked: whether a gradient flows back to it."""

    call: int
    slot: int
    tracked: bool


class Given(NamedTuple):
    """An operand that no call has made. leaf: the sequence number of a leaf, None for what has no gradient."""

    number: int
    leaf: int | None


@dataclass(frozen=True, slots=True)
class Call:
    """One call of an op. state: of the generator, None if the op drew nothing. row: of the recording."""

    op: Any
    operands: list[Any]  # Made, Given, or what is not an array
    options: dict[str, Any]
    state: dict[str, Any] | None
    row: int


class Program:
    """The calls of a recording in order, copies of the arrays that they were given, and where backward began."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.given: list[Any] = []
        self.leaves: dict[int, int] = {}  # sequence number of a leaf -> the number of its array
        self.roots: list[tuple[Made, Any]] = []  # and the gradients that backward was given
        self._edges: dict[tuple[int, int], tuple[int, int]] = {}  # sequence and slot of an edge -> call and slot
        self._arrays: dict[int, Any] = {}  # id of an array -> a weak reference to it, and its Made or its number

    def add(self, op: Any, operands: tuple[Any, ...], outputs: list[Any], options: Any, state: Any, row: int) -> None:
        """Append a call. state: of the generator before it."""
        number = len(self.calls)
        drew = state is not None and state != default_generator.state_dict()
        options = {name: value for name, value in options.items() if name != "ctx"}
        described = [self._operand(x) for x in operands]
        self.calls.append(Call(op, described, options, state if drew else None, row))
        for slot, y in enumerate(outputs):
            self._arrays[id(y.data)] = weakref.ref(y.data), (number, slot)
            if y.edge is not None:
                self._edges[y.edge[0].sequence, y.edge[1]] = number, slot

    def begin(self, edge: Edge, dy: Array) -> None:
        """Note that backward begins at an edge, with that gradient. Nothing, if no call has made its result."""
        if (made := self._edges.get((edge[0].sequence, edge[1]))) is not None:
            self.roots.append((Made(made[0], made[1], True), on_host(dy)))

    def _operand(self, x: Any) -> Any:
        array = x.data if isinstance(x, Tensor) else x
        if not hasattr(array, "dtype"):
            return x
        edge = x.edge if isinstance(x, Tensor) else None
        if edge is not None and (made := self._edges.get((edge[0].sequence, edge[1]))) is not None:
            return Made(made[0], made[1], True)
        reference, known = self._arrays.get(id(array), (None, None))
        known = known if reference is not None and reference() is array else None
        leaf = edge[0].sequence if edge is not None and edge[0].is_leaf else None
        if isinstance(known, tuple) and leaf is None:  # a result of checkpoint has another edge, one of detach has none
            return Made(known[0], known[1], edge is not None)
        if not isinstance(known, int):
            known = len(self.given)
            self.given.append(on_host(array))
            if not isinstance(array, np.generic | QuantizedArray):
                self._arrays[id(array)] = weakref.ref(array), known
        if leaf is not None:
            self.leaves.setdefault(leaf, known)
        return Given(known, leaf)


def on_host(array: Any) -> Any:
    """Return a copy as an array of NumPy; of a quantised one the numbers that it stands for."""
    array = array.dequantize() if isinstance(array, QuantizedArray) else array
    return np.array(array if isinstance(array, np.generic) else backend_of("record", [array]).to_numpy(array))


def _wide(x: Any) -> Any:
    return x.astype(np.float64) if is_floating(x.dtype) else x


class Part(NamedTuple):
    """A part of a leaf's gradient: what one op has sent to it.

    operands: the op's, as tensors. dy: the gradient of its result, before it was summed over the axes along which a
    later addition broadcast the result. gradient: the part itself. row: of the recording.
    """

    leaf: int
    op: Any
    name: str
    operand: int
    operands: tuple[Any, ...]
    operand_name: str
    options: dict[str, Any]
    dy: Any
    gradient: Any
    row: int


class Replay(Observer):
    """A program that has run again in float64, forward and backward.

    leaves: sequence number of a recorded leaf -> its tensor here. parts: of all leaves' gradients, in the order of
    backward.
    """

    def __init__(self, program: Program) -> None:
        self.program, self.parts = program, list[Part]()
        self.values: list[list[Tensor]] = []  # the results of each call
        with use_backend("numpy"):
            given = {leaf: _wide(program.given[n]) for leaf, n in program.leaves.items()}
            self.leaves = {leaf: Tensor(x, requires_grad=True) for leaf, x in given.items()}
        self._leaf_of = {x.edge[0].sequence: leaf for leaf, x in self.leaves.items() if x.edge is not None}
        self._row = 0
        self._uses: dict[int, tuple[Any, ...]] = {}  # sequence number of a node -> the call of the op
        self._arrived: dict[Edge, list[Any]] = {}  # the gradients that were sent to the results of those
        now = default_generator.state_dict()
        try:
            with use_backend("numpy"), enable_grad(), self:
                for call in program.calls:
                    self.values.append(self._run(call, self.values, self.leaves))
                for made, dy in program.roots:
                    self._at(made, self.values).backward(_wide(dy), retain_graph=True)
        finally:
            default_generator.load_state_dict(now)
        self._uses.clear()

    def objective(self, leaf: int | None = None, array: Any = None) -> float:
        """What the gradient is of: the sum of dy y over the results where backward began; with another leaf's array."""
        values: Any = self.values
        if leaf is not None:
            values, leaves = dict(enumerate(self.values)), {**self.leaves, leaf: Tensor.wrap(array)}
            now = default_generator.state_dict()
            try:
                with use_backend("numpy"), no_grad(), np.errstate(invalid="ignore", over="ignore"):
                    for number in self._after(leaf):
                        values[number] = self._run(self.program.calls[number], values, leaves)
            finally:
                default_generator.load_state_dict(now)
        return float(sum(np.sum(_wide(dy) * self._at(made, values).data) for made, dy in self.program.roots))

    def size(self) -> float:
        """The size of the terms of the objective, which its rounding error is relative to."""
        return float(sum(np.sum(np.abs(dy * self._at(made, self.values).data)) for made, dy in self.program.roots))

    def _after(self, leaf: int) -> Iterator[int]:
        """The numbers of the calls whose result depends on a leaf."""
        after: set[int] = set()
        for number, call in enumerate(self.program.calls):
            for x in call.operands:
                if isinstance(x, Given) and x.leaf == leaf or isinstance(x, Made) and x.tracked and x.call in after:
                    after.add(number)
        return iter(sorted(after))

    def _operand(self, x: Any, values: Any, leaves: dict[int, Tensor]) -> Any:
        if isinstance(x, Made):
            return self._at(x, values) if x.tracked else self._at(x, self.values).detach()
        if not isinstance(x, Given):
            return x
        return Tensor.wrap(_wide(self.program.given[x.number])) if x.leaf is None else leaves[x.leaf]

    @staticmethod
    def _at(made: Made, values: Any) -> Tensor:
        return values[made.call][made.slot]

    def _run(self, call: Call, values: Any, leaves: dict[int, Tensor]) -> list[Tensor]:
        self._row = call.row
        operands = [self._operand(x, values, leaves) for x in call.operands]
        options = dict(call.options)
        if options.get("dtype") is not None and is_floating(np.dtype(options["dtype"])):
            options["dtype"] = "float64"
        if call.state is not None:
            default_generator.load_state_dict(call.state)
        result = getattr(call.op, "composition", call.op)(*operands, **options)
        return result if isinstance(result, list) else [result]

    def after_op(self, name: str, operands: tuple[Any, ...], output: Any, op: Any, options: dict[str, Any]) -> None:
        """Remember the calls that used a leaf."""
        y = output[0] if isinstance(output, list) else output
        edges = [x.edge for x in operands if isinstance(x, Tensor)]
        if y.edge is not None and any(edge is not None and edge[0].is_leaf for edge in edges):
            options = {key: value for key, value in options.items() if key != "ctx"}
            self._uses[y.edge[0].sequence] = op, name, operands, options, self._row

    def arrived(self, node: Node, dys: list[Array | None]) -> None:
        """Begin the backward of a node."""
        self._waiting = [i for i, edge in enumerate(node.parents) if edge is not None]

    def sent(self, node: Node, edge: Edge, gradient: Any, dys: list[Array | None]) -> None:
        """Keep the part of a leaf's gradient, and what adds up to the gradient of a result that used a leaf."""
        operand = self._waiting.pop(0)
        gradient = gradient.dense() if isinstance(gradient, SparseGradient) else gradient
        if (leaf := self._leaf_of.get(edge[0].sequence)) is not None:
            op, name, operands, options, row = self._uses[node.sequence]
            arrived = self._arrived.get((node, 0), [])
            dy = arrived[0] if len(arrived) == 1 else dys[0] if len(dys) == 1 else None
            self.parts.append(
                Part(
                    leaf,
                    op,
                    name,
                    operand,
                    operands,
                    operand_names(op, len(operands))[operand],
                    options,
                    dy,
                    np.array(gradient),
                    row,
                )  # a copy: the tape adds to it
            )
        elif edge[0].sequence in self._uses:
            self._arrived.setdefault(edge, []).append(dys[0] if node.name == "add" else gradient)
