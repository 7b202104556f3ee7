"""Finding what first made a nan or an infinity: every result and every gradient looked at, with the module it is in."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import Any

import numpy as np

from tensorgrad import autograd
from tensorgrad.autograd import Leaf, Node
from tensorgrad.backend import Array, backend_of
from tensorgrad.backend.arrays import is_floating
from tensorgrad.nn import Module, _walk
from tensorgrad.tensor import Tensor


class NonFiniteError(FloatingPointError):
    """An op whose result, or whose gradient in backward, is the first that is not finite.

    op: its name. module: the path of the module that called it, "" outside of any. parameter: the name of the parameter
    that was not finite before, or whose gradient it is; None where there is none. phase: "forward" or "backward".
    """

    def __init__(self, message: str, *, op: str, module: str, parameter: str | None, phase: str) -> None:
        super().__init__(message)
        self.op = op
        self.module = module
        self.parameter = parameter
        self.phase = phase


class detect_anomaly:
    """In a `with`: the first op whose result or gradient has a nan or an infinity raises NonFiniteError.

    model: whose modules and parameters are called by their names in it. Everything computed is read once more, so a
    step takes longer; outside of the block nothing does. What is infinite on purpose, such as a mask, is found too.
    """

    def __init__(self, model: Module | None = None) -> None:
        self._names: dict[int, str] = {}  # by id: of modules, and of the nodes of parameters
        for name, value in _walk("", model):
            self._names.setdefault(id(value.node if isinstance(value, Tensor) else value), name)
        self._model = model  # no id of what it holds may come to stand for something else
        self._inside: list[str] = []
        self._made_in: dict[int, str] = {}  # the module of every node, by its birth

    def __enter__(self) -> "detect_anomaly":
        self._before, autograd.watcher = autograd.watcher, self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        autograd.watcher = self._before

    def inside(self, module: Any) -> AbstractContextManager[None]:
        """In a `with`: what is computed is this module's."""
        return self._entered(self._names.get(id(module), type(module).__name__))

    @contextmanager
    def _entered(self, name: str) -> Iterator[None]:
        self._inside.append(name)
        try:
            yield
        finally:
            self._inside.pop()

    def after_op(self, name: str, operands: tuple[Any, ...], made: Any) -> None:
        """Look at what an op has returned, a tensor or a list of them."""
        module = self._inside[-1] if self._inside else ""
        for out in made if isinstance(made, list) else [made]:
            if out.node is not None:
                node = out.node.parents[0] if isinstance(made, list) else out.node
                self._made_in[node.birth] = module
            if not _finite(out.data):
                bad, parameter = self._find_bad(operands)
                raise NonFiniteError(
                    f"{_called(name, module)}: its result {_described(out.data)}; {bad or _all_finite(operands)}",
                    op=name, module=module, parameter=parameter, phase="forward",
                )  # fmt: skip

    def _find_bad(self, operands: tuple[Any, ...]) -> tuple[str, str | None]:
        for i, x in enumerate(operands):
            array = x.data if isinstance(x, Tensor) else x
            if hasattr(array, "dtype") and not _finite(array):
                parameter = self._names.get(id(x.node)) if isinstance(x, Tensor) and x.node is not None else None
                what = f"parameter {parameter}" if parameter else f"operand {i}"
                return f"{what} {_described(array)} already", parameter
        return "", None

    def arrived(self, node: Node, dy: Any) -> None:
        """Look at the gradient that has come to an op, after each of its parts was found finite."""
        if not all(_finite(part) for part in _parts(dy)):
            self._raise(node, None, "the gradients that arrive at its result are finite, and their sum is not")

    def sent(self, node: Node, parent: Node, gradient: Array, dy: Any) -> None:
        """Look at what an op's backward has made of `dy` for one of its operands."""
        if not _finite(gradient):
            gradient = np.asarray(gradient) if isinstance(gradient, np.generic) else gradient
            parameter = self._names.get(id(parent))
            whose = f"parameter {parameter}" if parameter else "an operand"
            came = _all_finite(_parts(dy), "what came to it")
            self._raise(node, parameter, f"the gradient of {whose} {_described(gradient)}; {came}")

    def added(self, node: Node, leaf: Leaf) -> None:
        """Look at a parameter's gradient after one more part has been added to it."""
        if leaf.grad is not None and not _finite(leaf.grad):
            parameter = self._names.get(id(leaf))
            self._raise(node, parameter, f"the parts of the gradient of {parameter} are finite, and their sum is not")

    def _raise(self, node: Node, parameter: str | None, what: str) -> None:
        module = self._made_in.get(node.birth, "")
        raise NonFiniteError(
            f"backward of {_called(node.name, module)}: {what}",
            op=node.name, module=module, parameter=parameter, phase="backward",
        )  # fmt: skip


def _parts(dy: Any) -> list[Array]:
    """An op with several results gets a list, with None for those that nothing used."""
    return [part for part in dy if part is not None] if isinstance(dy, list) else [dy]


def _called(name: str, module: str) -> str:
    return f"{name} in {module}" if module else name


def _finite(array: Any) -> bool:
    if not is_floating(array.dtype):
        return True
    if isinstance(array, np.generic):  # NumPy makes scalars of 0-d results
        return bool(np.isfinite(array))
    k = backend_of("detect_anomaly", [array])
    return bool(k.xp.isfinite(array).all())


def _described(array: Any) -> str:
    xp = backend_of("detect_anomaly", [array]).xp
    bad = ~xp.isfinite(array)
    count = int(bad.sum())
    first = tuple(int(i) for i in xp.argwhere(bad)[0])
    return f"of shape {array.shape} has {count:,} of {array.size:,} not finite, first {float(array[first])} at {first}"


def _all_finite(operands: Any, what: str = "what it was given") -> str:
    arrays = [x.data if isinstance(x, Tensor) else x for x in operands]
    largest = [float(abs(a).max()) for a in arrays if hasattr(a, "dtype") and is_floating(a.dtype) and a.size]
    return f"{what} is finite, up to {max(largest):.3g}" if largest else f"{what} is finite"
