"""An observer that reads a clock whenever an op begins or ends, forward and backward."""

from collections import defaultdict
from statistics import mean
from typing import Any, NamedTuple

from tensorgrad.autograd import Edge, Node, Observer
from tensorgrad.backend import Array, Backend
from tensorgrad.backend.arrays import is_floating
from tensorgrad.backend.clock import Clock
from tensorgrad.counting import addition_of


class Key(NamedTuple):
    """What calls of an op are added up under: op, phase, and the shapes and dtype of its operands."""

    op: str
    phase: str  # "forward", "backward" or "update"
    shapes: str = ""  # "768x128, 384x128, 384"
    dtype: str = ""

    @classmethod
    def of(cls, op: str, arrays: list[Any], phase: str = "forward") -> "Key":
        """The key of a call with these arrays; Python numbers, None and quantised weights may be among them."""
        arrays = [x for x in arrays if hasattr(x, "dtype") and hasattr(x, "shape")]
        dtypes = [x.dtype for x in arrays]
        dtype = next((d for d in dtypes if is_floating(d)), dtypes[0] if dtypes else "")
        return cls(op, phase, ", ".join("x".join(map(str, x.shape)) or "1" for x in arrays), str(dtype))


def faster_half(seconds: list[float]) -> float:
    """The mean over the faster half of repetitions: what interrupts some of them does not count."""
    return mean(sorted(seconds)[: (len(seconds) + 1) // 2])


class Stopwatch(Observer):
    """In a `with`, it measures the time of every op by its key, and under None what is between the ops.

    All times together are the time between the beginning and the end of the block.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.calls: dict[Key | None, int] = defaultdict(int)
        self._marks: list[tuple[Key | None, Any]] = []  # what begins at a stamp
        self._outer: list[Key | None] = []  # what ops that are running interrupt: a checkpoint's backward runs some
        self._forward: list[Key] = []  # the ops that are running
        self._key_of: dict[int, Key] = {}  # sequence number of a node -> the key of its op

    def begin(self, key: Key | None) -> None:
        """What follows is the time of `key`."""
        self._marks.append((key, self.clock.stamp()))

    def seconds(self) -> dict[Key | None, float]:
        """The time of every key; waits until it is known."""
        found: dict[Key | None, float] = defaultdict(float)
        for (key, start), (_, end) in zip(self._marks, self._marks[1:], strict=False):
            found[key] += self.clock.seconds(start, end)
        return found

    def __enter__(self) -> "Stopwatch":
        self.begin(None)
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self.begin(None)

    def before_op(self, name: str, k: Backend, arrays: list[Any]) -> tuple[Backend, list[Any]]:
        """Start the time of an op."""
        self._outer.append(self._marks[-1][0])
        self._forward.append(Key.of(name, arrays))
        self.begin(self._forward[-1])
        return k, arrays

    def after_op(self, name: str, operands: tuple[Any, ...], output: Any, *call: Any) -> None:
        """End it."""
        self.begin(self._outer.pop())
        key = self._forward.pop()
        self.calls[key] += 1
        for y in output if isinstance(output, list) else [output]:
            if y.edge is not None:
                self._key_of[y.edge[0].sequence] = key._replace(phase="backward")

    def arrived(self, node: Node, dys: list[Array | None]) -> None:
        """Start the time of a backward."""
        key = self._backward_of(node)
        self.calls[key] += 1
        self.begin(key)

    def sent(self, node: Node, edge: Edge, gradient: Any, dys: list[Array | None]) -> None:
        """Start the time of the addition of a gradient."""
        key = Key.of(*addition_of(gradient), "backward")
        self.calls[key] += 1
        self.begin(key)

    def added(self, node: Node | None, edge: Edge) -> None:
        """Go on with the backward, if it has begun."""
        self.begin(None if node is None else self._backward_of(node))

    def finished(self) -> None:
        self.begin(None)

    def _backward_of(self, node: Node) -> Key:
        return self._key_of.get(node.sequence) or Key(node.name, "backward")
