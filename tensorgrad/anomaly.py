"""Find the op that produced the first nan or infinity, by checking every result and gradient."""

from typing import Any

import numpy as np

from tensorgrad.autograd import Edge, Leaf, Node, Observer, SparseGradient
from tensorgrad.backend import Array, backend_of
from tensorgrad.backend.arrays import is_floating
from tensorgrad.nn import Module, walk
from tensorgrad.tensor import Tensor


class NonFiniteError(FloatingPointError):
    """The result of an op, or a gradient that its backward computed, is the first value that is not finite.

    op: its name. module: the path of the module that called it, "" outside of modules. parameter: the name of the
    parameter that was not finite before, or whose gradient it is; None if there is none. phase: "forward" or
    "backward".
    """

    def __init__(self, message: str, *, op: str, module: str, parameter: str | None, phase: str) -> None:
        super().__init__(message)
        self.op, self.module, self.parameter, self.phase = op, module, parameter, phase


class detect_anomaly(Observer):
    """A context in which the first op whose result or gradient has a nan or an infinity raises NonFiniteError.

    model: the error names its modules and parameters. Every array is read once more, so a step takes longer inside the
    context. Intended infinities, such as those of a mask, raise the error too.
    """

    def __init__(self, model: Module | None = None) -> None:
        self._names: dict[int, str] = {}  # by the id of a module, or of the node of a parameter
        for name, value in walk("", model):
            self._names.setdefault(id(value.node if isinstance(value, Tensor) else value), name)
        self._model = model  # while it exists, these ids belong to no other object
        self._modules: list[str] = []  # the modules that are running, the innermost last
        self._module_of: dict[int, str] = {}  # sequence number of a node -> its module

    def enter_module(self, module: Any) -> None:
        self._modules.append(self._names.get(id(module), type(module).__name__))

    def leave_module(self, module: Any) -> None:
        self._modules.pop()

    def after_op(self, name: str, operands: tuple[Any, ...], output: Any, *call: Any) -> None:
        """Check the outputs of an op."""
        module = self._modules[-1] if self._modules else ""
        for out in output if isinstance(output, list) else [output]:
            if out.node is not None:
                self._module_of[out.node.sequence] = module
            if not _is_finite(out.data):
                bad, parameter = self._find_bad(operands)
                raise NonFiniteError(
                    f"{_describe_op(name, module)}: its result {_describe(out.data)}; {bad or _largest(operands)}",
                    op=name, module=module, parameter=parameter, phase="forward",
                )  # fmt: skip

    def _find_bad(self, operands: tuple[Any, ...]) -> tuple[str, str | None]:
        for i, x in enumerate(operands):
            array = x.data if isinstance(x, Tensor) else x
            if hasattr(array, "dtype") and not _is_finite(array):
                parameter = self._names.get(id(x.node)) if isinstance(x, Tensor) and x.node is not None else None
                what = f"parameter {parameter}" if parameter else f"operand {i}"
                return f"{what} {_describe(array)} already", parameter
        return "", None

    def arrived(self, node: Node, dys: list[Array | None]) -> None:
        """Check the sums of the gradients that arrived at a node; each of the gradients was finite."""
        if not all(dy is None or _is_finite(dy) for dy in dys):
            self._raise(node, None, "the gradients that arrive at its result are finite, but their sum is not")

    def sent(self, node: Node, edge: Edge, gradient: Any, dys: list[Array | None]) -> None:
        """Check the gradient of one operand."""
        gradient = gradient.dense() if isinstance(gradient, SparseGradient) else gradient
        gradient = np.asarray(gradient) if isinstance(gradient, np.generic) else gradient
        if not _is_finite(gradient):
            parameter = self._names.get(id(edge[0]))
            whose = f"parameter {parameter}" if parameter else "an operand"
            incoming = _largest([dy for dy in dys if dy is not None], "the incoming gradient")
            self._raise(node, parameter, f"the gradient of {whose} {_describe(gradient)}; {incoming}")

    def added(self, node: Node | None, edge: Edge) -> None:
        """Check the gradient of a parameter after an addition to it."""
        leaf = edge[0]
        if node is not None and isinstance(leaf, Leaf) and leaf.grad is not None and not _is_finite(leaf.grad):
            parameter = self._names.get(id(leaf))
            self._raise(node, parameter, f"the parts of the gradient of {parameter} are finite, but their sum is not")

    def _raise(self, node: Node, parameter: str | None, what: str) -> None:
        module = self._module_of.get(node.sequence, "")
        raise NonFiniteError(
            f"backward of {_describe_op(node.name, module)}: {what}",
            op=node.name, module=module, parameter=parameter, phase="backward",
        )  # fmt: skip


def _describe_op(name: str, module: str) -> str:
    return f"{name} in {module}" if module else name


def _is_finite(array: Any) -> bool:
    if not is_floating(array.dtype):
        return True
    if isinstance(array, np.generic):  # NumPy makes scalars of 0-d results
        return bool(np.isfinite(array))
    return bool(backend_of("detect_anomaly", [array]).xp.isfinite(array).all())


def _describe(array: Any) -> str:
    xp = backend_of("detect_anomaly", [array]).xp
    bad = ~xp.isfinite(array)
    count = int(bad.sum())
    first = tuple(int(i) for i in xp.argwhere(bad)[0])
    return f"of shape {array.shape} has {count:,} of {array.size:,} not finite, first {float(array[first])} at {first}"


def _largest(operands: Any, what: str = "its input") -> str:
    arrays = [x.data if isinstance(x, Tensor) else x for x in operands]
    largest = [float(abs(a).max()) for a in arrays if hasattr(a, "dtype") and is_floating(a.dtype) and a.size]
    return f"{what} is finite, up to {max(largest):.3g}" if largest else f"{what} is finite"
