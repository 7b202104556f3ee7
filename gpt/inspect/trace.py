"""Two repetitions of a computation compared op by op: the arrays of the first are in a file when the second runs."""

from dataclasses import dataclass
from functools import cached_property
from typing import IO, Any, Protocol

import numpy as np

from tensorgrad.autograd import Edge, Leaf, Node, Observer, SparseGradient
from tensorgrad.backend import Array, backend_of
from tensorgrad.gradcheck.differences import index_text, relative_error
from tensorgrad.gradcheck.precision import TOLERANCE
from tensorgrad.inspect.formulas import operand_names
from tensorgrad.nn import Module, walk
from tensorgrad.tensor import Tensor

Host = np.ndarray[Any, Any]


class Writable(Protocol):
    """Takes the bytes of the arrays."""

    def write(self, data: bytes, /) -> object:
        """Take the bytes of one array."""


class Trace(Observer):
    """Writes every array that a computation makes to a file, in order: results, then the gradients of operands.

    model: names its modules and parameters.
    """

    def __init__(self, model: Module, file: Writable) -> None:
        self._file = file
        self.entries: list[tuple[str, tuple[int, ...], Any]] = []  # where each array was made, its shape and its dtype
        self.n_ops = 0  # so far, forward and backward
        self._names = {
            part.node.sequence if isinstance(part, Tensor) and part.node is not None else id(part): name
            for name, part in walk("", model)
        }
        self._modules: list[str] = []  # the modules that are running, the innermost last
        self._nodes: dict[int, tuple[str, list[str]]] = {}  # sequence number -> place, names of operands
        self._gradients: list[str] = []  # the names of the gradients that the running backward has not sent yet
        self._backward = ""  # the place whose backward is running

    def enter_module(self, module: Any) -> None:
        self._modules.append(self._names.get(id(module), type(module).__name__))

    def leave_module(self, module: Any) -> None:
        self._modules.pop()

    def after_op(self, name: str, operands: tuple[Any, ...], output: Any, op: Any, options: dict[str, Any]) -> None:
        """Add the results."""
        self.n_ops += 1
        place = name + (f" in {self._modules[-1]}" if self._modules and self._modules[-1] else "")
        phase = "recomputed in backward" if self._backward else "forward"
        for i, y in enumerate(output if isinstance(output, list) else [output]):
            if y.edge is not None:
                self._nodes[y.edge[0].sequence] = place, operand_names(op, len(operands))
            number = f" {i}" if isinstance(output, list) else ""
            self.add(f"op {self.n_ops}, {phase}, {place}: result{number}", y.data)

    def arrived(self, node: Node, dys: list[Array | None]) -> None:
        """Begin the backward of a node."""
        self.n_ops += 1
        place, operands = self._nodes.get(node.sequence, (node.name, []))
        self._backward = f"op {self.n_ops}, backward, {place}"
        self._gradients = [name for name, edge in zip(operands, node.parents, strict=False) if edge is not None]

    def sent(self, node: Node, edge: Edge, gradient: Any, dys: list[Array | None]) -> None:
        """Add the gradient of one operand."""
        operand = self._gradients.pop(0) if self._gradients else "an operand"
        leaf = self._names.get(edge[0].sequence) if isinstance(edge[0], Leaf) else None
        gradient = gradient.dense() if isinstance(gradient, SparseGradient) else gradient
        self.add(f"{self._backward}: gradient of {operand}" + (f", {leaf}" if leaf else ""), gradient)

    def finished(self) -> None:
        self._backward = ""

    def add(self, place: str, array: Any) -> None:
        """Add an array, under the name of the place where it was made."""
        x = on_host(array)
        self.entries.append((place, x.shape, x.dtype))
        self._file.write(x.tobytes())


class Comparison(Trace):
    """Compares every array with the one that a trace has, as it is made.

    first: the first array in which any number differs. beyond: the first whose error is above the tolerance of its
    dtype. Both are None where there is none, and `first` alone is set where the ops themselves are not the same.
    """

    def __init__(self, model: Module, trace: Trace, file: IO[bytes]) -> None:
        super().__init__(model, file)
        self.trace, self.file = trace, file  # the one that it was written to
        self.first: Difference | None = None
        self.beyond: Difference | None = None
        self._same_ops = True
        file.seek(0)

    def add(self, place: str, array: Any) -> None:
        """Compare an array with the next one of the trace."""
        if not self._same_ops:
            return
        b = on_host(array)
        entry = self.trace.entries[len(self.entries)] if len(self.entries) < len(self.trace.entries) else None
        self.entries.append((place, b.shape, b.dtype))
        if entry != self.entries[-1]:
            self._same_ops = False
            empty = np.empty(0)
            self.first = self.first or Difference(f"{_text(entry)} and {_text(self.entries[-1])}", empty, empty)
            return
        a = np.frombuffer(self.file.read(b.nbytes), b.dtype).reshape(b.shape)
        difference = Difference(place, a, b)
        if self.beyond is None and difference.n:
            self.first = self.first or difference
            self.beyond = difference if difference.error > difference.tolerance else None


def _text(entry: tuple[str, tuple[int, ...], Any] | None) -> str:
    return "nothing more" if entry is None else f"{entry[0]} {entry[1]} {entry[2].name}"


def on_host(array: Any) -> Host:
    """An array of any backend, or a number, as NumPy's."""
    if isinstance(array, float | int | np.generic):
        return np.asarray(array)
    return np.asarray(backend_of("on_host", [array]).to_numpy(array))


@dataclass(frozen=True)
class Difference:
    """Two arrays of the same shape and dtype that should be equal, and where they were made. NaN equals NaN."""

    place: str
    a: Host
    b: Host

    @cached_property
    def differs(self) -> Host:
        """Where they differ: booleans."""
        return np.asarray((self.a != self.b) & ~((self.a != self.a) & (self.b != self.b)))

    @property
    def n(self) -> int:
        """How many elements differ."""
        return int(self.differs.sum())

    @property
    def tolerance(self) -> float:
        """The tolerance of the dtype, in gradcheck's table; 0 for integers and booleans."""
        return TOLERANCE.get(self.a.dtype.name, 0.0)

    @cached_property
    def error(self) -> float:
        """The largest error, relative to the element or, where that is smaller, to the root mean square of all."""
        a, b = (np.where(self.differs, x.astype(np.float64), 0) for x in (self.a, self.b))
        size = float(np.sqrt(np.mean(np.square(self.a.astype(np.float64)))))
        return float(relative_error(a, b, size if np.isfinite(size) else 0.0).max())

    def lines(self) -> list[str]:
        """Say what differs, and by how much."""
        if not self.n:
            return [f"not the same ops: {self.place}"]
        at = np.unravel_index(int(self.differs.argmax()), self.differs.shape)
        a, b = self.a[at], self.b[at]
        apart = _ulps(a, b)
        by = f", {apart:,} ulp" if apart is not None else ""
        place = index_text(at) or "the number itself"
        return [
            f"{self.place} {self.a.shape} {self.a.dtype.name}",
            f"first at {place}: {a!s} and {b!s}{by}; {self.n:,} of {self.a.size:,} differ",
            f"largest error {self.error:.2g}; the tolerance of {self.a.dtype.name} is {self.tolerance:g}",
        ]


def _ulps(a: Any, b: Any) -> int | None:
    """How many steps from one floating-point number to the next lie between two; None for what has no such steps."""
    if a.dtype.name not in TOLERANCE or not (np.isfinite(a) and np.isfinite(b)):
        return None
    kind = np.dtype(f"i{a.dtype.itemsize}")
    bits = (int(np.asarray(x).view(kind)) for x in (a, b))
    lowest = int(np.iinfo(kind).min)
    first, second = (i if i >= 0 else lowest - i for i in bits)  # negative numbers are stored as sign and size
    return abs(first - second)
